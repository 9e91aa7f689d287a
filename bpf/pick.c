/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who gets a new flow: the routing rule, restated in tests/reference.py. The
 * ring names a live endpoint; its spill, its slots and their limits say whether
 * one of those takes the flow instead.
 *
 * A part of steer.c, for it looks things up in maps.
 */

static __always_inline u32 lookup_ring(struct here *here,
				       const struct service *service, u64 pick,
				       u32 try)
{
	u32 size = service->ring_size, cell, line;
	struct ring_line *cells;

	if (!size)
		return 0;
	cell = service->ring_base + service->ring_active * size +
	       hash_ring_slot(pick, try, size);
	line = cell / RING_LINE_CELLS;
	cells = rings.lookup(&line);
	if (!cells)
		return 0;
	NOTE(ring, cell, (u64)try << 32 | cells->cell[cell % RING_LINE_CELLS]);
	return cells->cell[cell % RING_LINE_CELLS];
}

/*
 * Its endpoint. NULL is impossible, so loops end there: going on would be one
 * more way into the next round.
 */
static __always_inline struct endpoint *lookup_named(struct here *here, u32 ref)
{
	u32 index = forget(here, ref_index(ref));

	return endpoints.lookup(&index);
}

/*
 * Whether ref names one of the service that takes new flows, and is not :but.
 * One branch, for in loops lookup_present()'s four are verified in every round.
 */
static __always_inline bool usable(const struct endpoint *endpoint, u32 ref,
				   u32 service, u32 but)
{
	u64 same = ((u64)(ref ^ but) - 1) >> 63;

	return !(ref_unusable(ref, *(volatile u64 *)&endpoint->state) |
		 (endpoint->service ^ service) | same);
}

/* Counts a new flow of the endpoint's; false: its limit is reached. */
static __always_inline bool admit(struct here *here, u32 endpoint)
{
	struct limit *limit = limits.lookup(&endpoint);
	struct cpu *own = cpus.lookup(&here->cpu);
	bool within = !limit || !own ||
		      within_limit(limit, DRY_RUN ? bpf_ktime_get_coarse_ns() /
							    WINDOW_NS :
						    own->window);

	NOTE(limit, endpoint, within);
	return within;
}

/* The first of a few slots whose member takes new flows and is not :but; 0: none. */
static __always_inline u32 pick_slot(struct here *here, u32 live, u32 service,
				     u64 pick, u32 but)
{
	struct shadow_slots *slots = shadow_table.lookup(&live);
	u32 at = hash_shadow_slot(pick), ref;
	struct endpoint *endpoint;

	if (!slots)
		return 0;
#pragma unroll
	for (u32 i = 0; i < SLOT_TRIES; i++) {
		ref = slots->slot[(at + i * SLOT_STRIDE) % SHADOW_SLOTS];
		endpoint = lookup_named(here, ref);
		if (!endpoint)
			return 0;
		NOTE(slot, (at + i * SLOT_STRIDE) % SHADOW_SLOTS,
		     (u64)usable(endpoint, ref, service, but) << 32 | ref);
		if (usable(endpoint, ref, service, but))
			return ref;
	}
	return 0;
}

/*
 * The flow's slot, or a second one when the first's limit is reached; 0: none,
 * or both are. *first is whom the hash alone names.
 */
static __always_inline u32 pick_shadow(struct here *here, u32 live, u32 service,
				       u64 pick, bool limited, u32 *first)
{
	u32 ref = pick_slot(here, live, service, pick, 0);

	*first = ref = forget(here, ref);
	if (!limited || !ref || admit(here, ref_index(ref)))
		return ref;
	ref = forget(here, pick_slot(here, live, service, pick, ref));
	return ref && admit(here, ref_index(ref)) ? ref : 0;
}

static __always_inline u32 pick_other_live(struct here *here, u32 index,
					   const struct service *service,
					   u64 pick)
{
	u32 ref;
	struct endpoint *endpoint;

#pragma unroll
	for (u32 try = 1; try <= RING_TRIES; try++) {
		ref = forget(here, lookup_ring(here, service, pick, try));
		endpoint = lookup_named(here, ref);
		if (!endpoint)
			return 0;
		NOTE(other_live, try,
		     (u64)usable(endpoint, ref, index, 0) << 32 | ref);
		if (usable(endpoint, ref, index, 0))
			return ref;
	}
	return 0;
}

/*
 * What ring, spill and slot are taken from: the flow, or where a client's flows
 * go alike its address alone.
 */
static __always_inline u64 pick_bits(struct here *here,
				     const struct service *service, bool v6,
				     const __be32 *client, u64 hash)
{
	if (service->flags & SERVICE_AFFINITY) {
		NOTE(affinity, 0, 0);
		hash = hash_flow(here->settings->hash_key, v6, service->protocol,
				 client, service->vip, 0, service->port);
	}
	return hash_pick(hash);
}

static __always_inline void tell(struct here *here, u32 index,
				 const struct packet *packet,
				 const struct choice *choice, u64 away, u64 state)
{
	u32 chosen = ref_index(choice->ref);

	if (choice->ref != choice->hashed)
		say(here, EVENT_LIMITED, index, ref_index(choice->hashed),
		    chosen, packet);
	if (choice->spilled)
		say(here, EVENT_REDIRECTED, index, choice->live, chosen, packet);
	else if (away && !(state & ENDPOINT_DOWN))
		say(here, EVENT_NO_SHADOW, index, choice->live, chosen, packet);
	if (state & ENDPOINT_DOWN)
		say(here, EVENT_ENDPOINT_DOWN, index, choice->live, chosen, packet);
}

/*
 * The routing rule: the ring's live endpoint; its shadows for the share that
 * spills, for what is past its limit, or for all when it is down or drains;
 * it again when there is none, or when two of them are past their limits too;
 * another live one when it can't; and when nobody can, it all the same, for
 * the last one is never ejected.
 */
static __always_inline struct choice pick(struct here *here, u32 index,
					  const struct service *service,
					  const struct packet *packet, u64 pick,
					  bool limited)
{
	u64 state = 0, spills = 0, over = 0;
	u32 ref = lookup_ring(here, service, pick, 0), spill = SPILL_ALL, first = 0;
	struct endpoint *live = lookup_present(ref, &state);
	bool able = live && takes_new(state);
	struct choice choice = {};

	if (live) {
		choice.live = ref_index(ref);
		if (able)
			spill = *(volatile u32 *)&live->spill;
		spills = spill == SPILL_ALL || hash_spill_bits(pick) < spill;
		NOTE(live, choice.live, state);
		NOTE(spill, spill, hash_spill_bits(pick));
		over = limited && !spills && !admit(here, choice.live);
		spills = forget(here, spills);
		over = forget(here, over);
		if (spills || over)
			choice.ref = pick_shadow(here, choice.live, index, pick,
						 limited, &first);
	}
	first = forget(here, first);
	choice.ref = forget(here, choice.ref);
	choice.live = forget(here, choice.live);
	if (!choice.ref && !able)
		choice.ref = first ? first : pick_other_live(here, index,
							     service, pick);
	choice.ref = forget(here, choice.ref);
	if (!choice.ref && live)
		choice.ref = ref;
	choice.hashed = forget(here, over ? ref : first ? first : choice.ref);
	choice.spilled = forget(here, first && choice.ref != ref);
	NOTE(choice, choice.ref,
	     !choice.ref	   ? CHOSE_nobody :
	     choice.spilled	   ? CHOSE_spilled :
	     choice.ref != ref	   ? CHOSE_other :
	     able		   ? CHOSE_live :
				     CHOSE_last);
	tell(here, index, packet, &choice, spills | over, state);
	return choice;
}
