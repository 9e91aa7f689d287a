/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The packet's path: parse -> service -> flow or ring -> rewrite -> verdict.
 * The only file with programs and map calls; the headers know no map, except
 * maps.h, which declares them. Every path ends in an enum reason, and leave()
 * alone counts it and turns it into a verdict.
 */
#include <linux/types.h>

#include "maps.h"
#include "parse.h"
#include "endpoint.h"
#include "flow.h"
#include "fragment.h"
#include "hash.h"
#include "histogram.h"
#include "icmp.h"
#include "interface.h"
#include "limit.h"
#include "note.h"
#include "refuse.h"
#include "request.h"
#include "rewrite.h"
#include "route.h"
#include "store.h"
#include "target.h"

#define NOWHERE BUCKET_FLOWS
#define CANDIDATES (2 * BUCKET_FLOWS)	/* entries a flow may lie in */
#define SLOT_TRIES 16			/* shadow slots looked at for a usable one */
#define SLOT_STRIDE 53			/* odd: passes over neighbours alike */
#define HANDSHAKES_TIMED 2048		/* per CPU and tick; then one in */
#define HANDSHAKE_SHARE 8
#define RING_TRIES 8			/* ring slots looked at when one is down */

/* What every step needs to know besides the packet. */
struct here {
	struct xdp_md *ctx;
	struct settings *settings;
	u32 cpu;
	u32 tick;
	u32 ifindex;		/* what the packet came in by, a VLAN's device too */
	volatile bool no_client; /* the packet's source is none */
#if DRY_RUN
	struct trace *trace;
#endif
#if CAPTURE
	struct capture_cpu *capture;
#endif
};

/* Where a flow lies, or may lie, in the cache. */
struct place {
	struct flow *flow;	/* NULL: nowhere */
	u64 id;			/* as it was read */
	u32 bucket;
	u32 way;
	struct flow *moved;	/* where that one stands too, to make room here */
};

/* The endpoint that a flow was given; ref 0: none. */
struct choice {
	u32 ref;
	u32 hashed;		/* the one by hash alone, whatever the limits */
	u32 live;		/* index that the ring chose; 0: none */
	u32 spilled;		/* by the live one's slots; else 0 */
};

/*
 * The verifier goes down every path once for each constant it knows there:
 * added to what it can't know, they are one.
 */
static __always_inline u64 forget(struct here *here, u64 value)
{
	return value + here->settings->zero;
}

#include "capture.c"

/* One step of a decision, in a build that tells: see NOTE(). */
static __always_inline void note(struct here *here, enum note kind, u32 a,
				 u64 b)
{
#if DRY_RUN
	u32 at = here->trace->count++;
	struct note_row *row = &here->trace->row[at % NOTES_MAX];

	if (at >= NOTES_MAX)
		return;
	row->kind = kind;
	row->a = a;
	row->b = b;
#elif CAPTURE
	capture_note(here, kind, a);
#endif
}

/* False: nobody would hear of it. */
static __always_inline bool may_note(struct here *here)
{
#if DRY_RUN
	u32 zero = 0;

	here->trace = traces.lookup(&zero);
	return here->trace;
#else
	return true;
#endif
}

/* Named by ref, and still the same one and present; NULL otherwise. */
static __always_inline struct endpoint *lookup_present(u32 ref, u64 *state)
{
	u32 index = ref_index(ref);
	struct endpoint *endpoint;

	if (!index)
		return NULL;
	endpoint = endpoints.lookup(&index);
	if (!endpoint)
		return NULL;
	*state = *(volatile u64 *)&endpoint->state;
	if (!(*state & ENDPOINT_PRESENT) || !ref_current(ref, *state))
		return NULL;
	return endpoint;
}

/* In its home or its other bucket; only the row tells that it is really it. */
static __always_inline struct service *lookup_service(struct here *here,
						      const struct target *target,
						      u32 *index)
{
	u64 h = hash_target(here->settings->hash_key, target);
	u32 home = hash_bucket(h, SERVICE_BUCKETS - 1), tag = hash_tag(h);
	struct target_bucket *bucket;
	struct service *service;
	u64 entry;

#pragma unroll
	for (u32 try = 0; try < 2; try++) {
		if (try)
			home = hash_other_bucket(home, tag, SERVICE_BUCKETS - 1);
		bucket = service_targets.lookup(&home);
		entry = bucket ? entry_in(bucket, tag) : 0;
		if (!entry)
			continue;
		*index = entry;
		service = services.lookup(index);
		if (service && is_target(target, service->vip, service->port,
					 service->protocol))
			return service;
	}
	return NULL;
}

static __always_inline struct endpoint *lookup_sender(struct here *here,
						      const struct target *target,
						      u32 *index)
{
	u64 h = hash_target(here->settings->hash_key, target);
	u32 home = hash_bucket(h, ENDPOINT_BUCKETS - 1), tag = hash_tag(h);
	struct target_bucket *bucket;
	struct endpoint *endpoint;
	u64 entry;

#pragma unroll
	for (u32 try = 0; try < 2; try++) {
		if (try)
			home = hash_other_bucket(home, tag, ENDPOINT_BUCKETS - 1);
		bucket = endpoint_targets.lookup(&home);
		entry = bucket ? entry_in(bucket, tag) : 0;
		if (!entry)
			continue;
		*index = entry;
		endpoint = endpoints.lookup(index);
		if (endpoint &&
		    is_target(target, endpoint->address, endpoint->port,
			      endpoint->protocol))
			return endpoint;
	}
	return NULL;
}

static __always_inline struct endpoint_counters *lookup_counters(u32 cpu,
								 u32 endpoint)
{
	u32 index = cpu * MAX_ENDPOINTS + endpoint;

	return counters.lookup(&index);
}

static __always_inline struct request_counters *lookup_requests(u32 cpu,
								u32 endpoint)
{
	u32 index = cpu * MAX_ENDPOINTS + endpoint;

	return request_counters.lookup(&index);
}

static __always_inline struct traffic *lookup_forwarded(u32 cpu, u32 endpoint)
{
	u32 index = cpu * MAX_ENDPOINTS + endpoint;

	return forwarded.lookup(&index);
}

static __always_inline struct traffic *lookup_returned(u32 cpu, u32 endpoint)
{
	u32 index = cpu * MAX_ENDPOINTS + endpoint;

	return returned.lookup(&index);
}

static __always_inline void count_traffic(struct traffic *traffic, u32 bytes)
{
	COUNT(traffic->packets, 1);
	COUNT(traffic->bytes, bytes);
}

/*
 * The coarse clock costs 19 ns, jiffies nothing (the verifier inlines them),
 * and the clock moves only when they do.
 */
static __always_inline u32 now_tick(u32 cpu)
{
	struct cpu *own = cpus.lookup(&cpu);
	u64 jiffies = bpf_jiffies64(), now;

	if (!own || DRY_RUN)
		return bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
	if (own->jiffies != jiffies) {
		now = bpf_ktime_get_coarse_ns();
		own->tick = now >> TICK_SHIFT;
		own->window = now / WINDOW_NS;
		own->jiffies = jiffies;
	}
	return own->tick;
}

static __always_inline void say(struct here *here, u32 kind, u32 service,
				u32 endpoint, u32 chosen,
				const struct packet *packet)
{
	struct event_gate *gate = event_gates.lookup(&endpoint);
	struct event *event;
	u32 last;

	if (!gate || DRY_RUN)
		return;
	last = gate->tick[kind];
	if (last && here->tick - last < here->settings->event_ticks)
		return;
	gate->tick[kind] = here->tick; /* two CPUs at once: two events, no harm */
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event)
		return;
	event->time_ns = bpf_ktime_get_ns();
	event->kind = kind;
	event->service = service;
	event->endpoint = endpoint;
	event->chosen = chosen;
	__builtin_memcpy(event->client, packet->source, sizeof(event->client));
	event->client_port = packet->source_port;
	event->pad = 0;
	event->pad2 = 0;
	events.ringbuf_submit(event, 0);
}

/* Whether the packet's destination, or source, is one that endpoints answer. */
static __always_inline u32 direct_kind(const __be32 *address)
{
	struct prefix to = { .length = 8 * sizeof(to.address) };
	u32 *kind;

	__builtin_memcpy(to.address, address, sizeof(to.address));
	kind = direct.lookup(&to);
	return kind ? *kind : 0;
}

static __always_inline bool is_vip(const __be32 *address)
{
	struct target to = {};

	__builtin_memcpy(to.address, address, sizeof(to.address));
	return vips.lookup(&to) != NULL;
}

/*
 * No client is there: what the kernel calls martian, VIPs, and this host's own addresses, whose packets
 * don't come in from outside. Such a flow would claim the answers to our
 * health checks, or have two services talk to each other for ever.
 */
static __always_inline bool is_no_client(struct here *here, const __be32 *address)
{
	if (is_martian(address))
		return true;
	if (!(here->settings->own_sources >> hash_source(address[V4_WORD]) & 1))
		return false;
	return direct_kind(address) == DIRECT_OWN || is_vip(address);
}

/* ---- who gets a new flow ------------------------------------------------- */

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

/* ---- the flow cache ------------------------------------------------------ */

/* From bucket and way. */
static __always_inline struct flow *lookup_flow(const struct place *place)
{
	u32 index = place->bucket;
	struct bucket *bucket = flows.lookup(&index);

	if (!bucket)
		return NULL;
	asm volatile("" : "+r"(bucket));	/* no arithmetic before the check */
	return &bucket->flow[place->way % BUCKET_FLOWS];
}

static __always_inline void find_in_bucket(struct here *here,
					   struct place *place, u32 index,
					   u32 tag)
{
	struct bucket *bucket = flows.lookup(&index);
	u32 way = NOWHERE;

	place->bucket = index;
	if (bucket) {
#pragma unroll
		for (u32 i = 0; i < BUCKET_FLOWS; i++) {
			u64 id = *(volatile u64 *)&bucket->flow[i].id;

			if (id >> ID_TAG == tag) {
				place->id = id;
				way = i;
				break;
			}
		}
	}
	place->way = forget(here, way);
}

static __always_inline struct place find_flow(struct here *here, u64 hash)
{
	u32 mask = here->settings->bucket_mask, tag = hash_tag(hash);
	u32 bucket = hash_bucket(hash, mask);
	struct place place = {};

	find_in_bucket(here, &place, bucket, tag);
	if (place.way == NOWHERE)
		find_in_bucket(here, &place,
			       hash_other_bucket(bucket, tag, mask), tag);
	if (place.way != NOWHERE)
		place.flow = lookup_flow(&place);
	NOTE(hash, tag, bucket);
	if (place.flow)
		NOTE(flow, place.bucket * BUCKET_FLOWS + place.way, place.id);
	else
		NOTE(no_flow, 0, 0);
	return place;
}

/* The first way of a bucket that holds nothing; NOWHERE: all are taken. */
static __always_inline u32 find_empty(struct here *here, u32 index)
{
	struct bucket *bucket = flows.lookup(&index);
	u32 way = NOWHERE;

	if (bucket) {
#pragma unroll
		for (u32 i = BUCKET_FLOWS; i-- > 0;)
			if (!*(volatile u64 *)&bucket->flow[i].id)
				way = i;
	}
	return forget(here, way);
}

/* What the entry's hash was made of. */
static __always_inline struct flow_key *lookup_key(const struct place *place)
{
	u32 index = place->bucket;
	struct bucket_keys *keys = flow_keys.lookup(&index);

	return keys ? &keys->key[place->way % BUCKET_FLOWS] : NULL;
}

/* What a flow that is moved was told meanwhile goes with it. */
static __always_inline void bring_life(const struct place *place)
{
	u64 copied = *(volatile u64 *)&place->moved->life;
	u64 life = *(volatile u64 *)&place->flow->life;

	if (life != copied)
		swap(&place->moved->life, copied, life);
}

/*
 * Moves one flow of a full bucket to its other one, which follows from bucket
 * and tag alone. It stands in both until its old place is taken, so that it is
 * found all the while. Without this 34 of 10 000 flows find no place when half
 * of the cache is in use, with it none, and 18 instead of 320 at three quarters.
 * False: each one's other bucket is full too.
 */
static __always_inline bool displace(struct here *here, u32 bucket, u32 start,
				     struct place *place)
{
	struct place to = { .way = NOWHERE };
	struct bucket *full = flows.lookup(&bucket);
	struct flow_key *key, *copy;

	if (!full)
		return false;
#pragma unroll
	for (u32 i = 0; i < BUCKET_FLOWS; i++) {
		u32 way = (start + i) % BUCKET_FLOWS;
		u64 id = *(volatile u64 *)&full->flow[way].id;

		if (!id || to.way != NOWHERE)
			continue;
		to.bucket = hash_other_bucket(bucket, id >> ID_TAG,
					      here->settings->bucket_mask);
		to.way = find_empty(here, to.bucket);
		place->id = forget(here, id);
		place->way = forget(here, way);
	}
	if (to.way == NOWHERE)
		return false;
	place->bucket = bucket;
	place->flow = lookup_flow(place);
	place->moved = lookup_flow(&to);
	if (!place->flow || !place->moved ||
	    swap(&place->moved->id, 0, place->id))
		return false;
	NOTE(moved, to.bucket * BUCKET_FLOWS + to.way, place->id);
	STORE(*(volatile u64 *)&place->moved->life, place->flow->life);
	key = lookup_key(place);
	copy = lookup_key(&to);
	if (key && copy && !DRY_RUN)
		*copy = *key;
	return true;
}

static __always_inline struct place find_victim(struct here *here, u64 hash)
{
	u32 mask = here->settings->bucket_mask;
	u32 first = hash_bucket(hash, mask);
	u32 second = hash_other_bucket(first, hash_tag(hash), mask);
	u32 start = hash >> (64 - 2), way;
	u64 best = forget(here, RANK_NEVER), id, rank, state;
	struct place place = { .bucket = first }, other = {};
	struct bucket *bucket;
	struct flow *flow;

	/* Mostly there is room, and nobody's rank need be asked for. */
	place.way = find_empty(here, first);
	if (place.way == NOWHERE) {
		place.bucket = second;
		place.way = find_empty(here, second);
	}
	if (place.way != NOWHERE) {
		place.flow = lookup_flow(&place);
		return place;
	}
	/*
	 * From a way that the hash names: to the verifier all ways are then
	 * alike, and it looks at one instead of eight stories.
	 */
#pragma unroll
	for (u32 i = 0; i < CANDIDATES; i++) {
		u32 index = i < BUCKET_FLOWS ? first : second;

		bucket = flows.lookup(&index);
		if (!bucket)
			continue;
		way = (start + i) % BUCKET_FLOWS;
		flow = &bucket->flow[way];
		id = *(volatile u64 *)&flow->id;
		rank = victim_rank(here->settings, here->tick, id,
				   *(volatile u64 *)&flow->life,
				   lookup_present((u32)id, &state));
		rank = forget(here, rank);
		if (rank >= best)
			continue;
		best = rank;
		place.id = id;
		place.bucket = index;
		place.way = way;
	}
	if (best >= RANK_UNANSWERED && displace(here, first, start, &other))
		return other;
	if (best != RANK_NEVER)
		place.flow = lookup_flow(&place);
	return place;
}

/*
 * Two CPUs may put one flow in two places at once. Both look at all its places
 * in the same order: the first entry stands, whoever is later takes its own
 * back, and who is first the other's, for that one may have looked too soon.
 * Returns the reference that stands.
 */
static __always_inline u32 settle(struct here *here, u64 hash,
				  const struct place *own, u64 own_id)
{
	u32 mask = here->settings->bucket_mask, tag = hash_tag(hash);
	u32 first = hash_bucket(hash, mask);
	u32 second = hash_other_bucket(first, tag, mask);
	u32 start = hash >> (64 - 2), way;
	bool passed = false;
	struct bucket *bucket;
	struct flow *flow;
	u64 id;

	if (DRY_RUN)		/* nothing was put */
		return own_id;
#pragma unroll
	for (u32 i = 0; i < CANDIDATES; i++) {
		u32 index = i < BUCKET_FLOWS ? first : second;

		bucket = flows.lookup(&index);
		if (!bucket)
			continue;
		way = (start + i) % BUCKET_FLOWS;
		flow = &bucket->flow[way];
		id = *(volatile u64 *)&flow->id;
		if (id >> ID_TAG != tag)
			continue;
		if (index == own->bucket && way == own->way) {
			passed = true;
			continue;
		}
		if (passed) {
			swap(&flow->id, id, 0);
			continue;
		}
		swap(&own->flow->id, own_id, 0);
		return id;
	}
	return own_id;
}

static __always_inline void count_aborted(struct here *here, u32 endpoint)
{
	struct request_counters *counted = lookup_requests(here->cpu, endpoint);

	NOTE(request, ASKED_aborted, endpoint);
	if (counted)
		COUNT(counted->aborted, 1);
}

/* The flow at a place that another gets: nobody will see its answer. */
static __always_inline void abandon(struct here *here, const struct place *place)
{
	u64 life = *(volatile u64 *)&place->flow->life, state;
	u64 id = forget(here, place->id);

	if (id && (life & LIFE(FLOW_REQUEST)) &&
	    end_request(place->flow, life, 0) && lookup_present(id, &state))
		count_aborted(here, ref_index(id));
}

/*
 * Whether one more flow may be remembered: past so many in a tick this CPU is
 * flooded, and nothing is until the next one.
 */
static __always_inline bool may_remember(struct here *here)
{
	struct cpu *own = cpus.lookup(&here->cpu);

	if (!own)
		return false;
	if (DRY_RUN) {
		if ((own->insert_tick == here->tick ? own->inserted : 0) <
		    here->settings->insert_limit)
			return true;
		NOTE(flooded, 0, 0);
		return false;
	}
	if (own->insert_tick != here->tick) {
		own->insert_tick = here->tick;
		own->inserted = 0;
	}
	if (own->inserted < here->settings->insert_limit) {
		own->inserted++;
		return true;
	}
	own->floods += own->flood_tick != here->tick;
	own->flood_tick = here->tick;
	own->flooded++;
	return false;
}

/* The clock costs 40 ns, and of many at once a part tells as much. */
static __always_inline bool times_handshake(struct here *here, u64 hash)
{
	struct cpu *own = cpus.lookup(&here->cpu);

	return own && (own->inserted <= HANDSHAKES_TIMED ||
		       !(hash % HANDSHAKE_SHARE));
}

static __always_inline bool flooded(struct here *here)
{
	struct cpu *own = cpus.lookup(&here->cpu);

	return own && own->flood_tick == here->tick;
}

/*
 * Puts the flow at its old place, or at a victim's. Returns the reference that
 * is remembered now, 0 for none.
 */
static __always_inline u32 remember(struct here *here, u64 hash, u32 ref,
				    u64 life, u32 service,
				    const struct packet *packet,
				    const struct place *old)
{
	struct place place = *old;
	u64 id = (u64)hash_tag(hash) << ID_TAG | ref;
	struct flow_key *key;
	struct place found;

	if (place.way == NOWHERE)
		place = find_victim(here, hash);
	else
		place.flow = lookup_flow(&place);
	if (!place.flow) {
		NOTE(no_place, 0, 0);
		return 0;
	}
	NOTE(place, place.bucket * BUCKET_FLOWS + place.way,
	     place.moved ? 0 : place.id);
	if (swap(&place.flow->id, place.id, id) != place.id) {
		if (place.moved)
			swap(&place.moved->id, place.id, 0);
		found = find_flow(here, hash);
		return found.flow ? (u32)found.id : 0;
	}
	if (place.moved)
		bring_life(&place);
	else
		abandon(here, &place);
	STORE(*(volatile u64 *)&place.flow->life, life);
	key = lookup_key(&place);
	if (key)
		write_key(key, service, packet);
	return settle(here, hash, &place, id);
}

/* The handshake is done, or the endpoint answered: credit the group. */
static __always_inline void count_completed(struct here *here,
					    const struct service *service,
					    bool v6, const __be32 *client,
					    u64 hash)
{
	u64 pick = pick_bits(here, service, v6, client, hash);
	u32 ref = lookup_ring(here, service, pick, 0);
	struct endpoint_counters *counted;
	u64 state;

	if (!lookup_present(ref, &state))
		return;
	NOTE(completed, ref_index(ref), 0);
	counted = lookup_counters(here->cpu, ref_index(ref));
	if (counted)
		COUNT(counted->completed, 1);
}

/* ---- leaving ------------------------------------------------------------- */

/* By a device of this host's; false: it takes no redirects. */
static __always_inline bool leave_by(struct here *here, struct packet *packet,
				     u32 ifindex)
{
	struct port *port = ports.lookup(&ifindex);

	if (!port) {
		NOTE(no_port, ifindex, 0);
		return false;
	}
	packet->out = *port;
	return true;
}

/*
 * Towards a client, while the default route is the only one that may lead there.
 * :word is the address's first.
 */
static __always_inline struct gateway *lookup_gateway(struct here *here, bool v6,
						      __be32 word)
{
	u32 version = v6, bit = hash_near(word, v6);
	u32 index = version * NEAR_WORDS + bit / 64;
	struct gateway *gateway = gateways.lookup(&version);
	u64 *covered = near.lookup(&index);

	if (!gateway || !covered || here->tick >= gateway->hop_expires ||
	    (*covered >> bit % 64 & 1))
		return NULL;
	return gateway;
}

/*
 * What of a packet is rewritten: addresses and ports; addresses alone; or those
 * of an ICMP error and of what it is about.
 */
enum part {
	WHOLE,
	LATER_FRAGMENT,
	ICMP_ERROR,
};

static __always_inline void rewrite_to(struct packet *packet, enum part part,
				       struct embedded *about,
				       const struct endpoint *to)
{
	if (part == ICMP_ERROR)
		rewrite_error(packet, about, true, to->address, to->port);
	else if (part == LATER_FRAGMENT)
		rewrite_address(packet, false, to->address);
	else
		rewrite_destination(packet, to->address, to->port);
}

static __always_inline void rewrite_from(struct packet *packet, enum part part,
					 struct embedded *about,
					 const struct service *service)
{
	if (part == ICMP_ERROR)
		rewrite_error(packet, about, false, service->vip, service->port);
	else if (part == LATER_FRAGMENT)
		rewrite_address(packet, true, service->vip);
	else
		rewrite_source(packet, service->vip, service->port);
}

/* As lookup_route() would have found it of a next hop that is known. */
static __always_inline long found_large(struct bpf_fib_lookup *route, u32 mtu)
{
	__builtin_memset(route, 0, sizeof(*route));
	route->mtu_result = mtu;
	return BPF_FIB_LKUP_RET_FRAG_NEEDED;
}

/*
 * Where it stands, for refuse.c, which bytes fit on the way of the present packet; a
 * dry run's is no map of the instance's.
 */
static __always_inline u32 *lookup_refused_mtu(struct here *here)
{
#if DRY_RUN
	return &here->trace->refused_mtu;
#else
	struct cpu *own = cpus.lookup(&here->cpu);

	return own ? &own->refused_mtu : NULL;
#endif
}

/* Before anything is rewritten: its sender is told of the packet that he knows. */
static __always_inline enum reason too_large(struct here *here, u32 mtu)
{
	u32 *refused_mtu = lookup_refused_mtu(here);

	if (refused_mtu)
		*refused_mtu = mtu;
	return REASON_pass_mtu;
}

/* :about is what the packet is an ICMP error about, if it is one. */
static __always_inline enum reason send_forward(struct here *here,
						struct packet *packet,
						enum part part,
						struct embedded *about,
						const struct endpoint *to)
{
	struct bpf_fib_lookup route;
	long found;

	if (here->tick >= to->hop_expires) {
		NOTE(no_hop, to->hop_expires, 0);
		found = lookup_route(here->ctx, packet, here->ifindex,
				     packet->source, to->address, &route);
		NOTE(route, route.ifindex, found);
	} else if (to->hop_mtu && packet->bytes > to->hop_mtu) {
		NOTE(too_big, to->hop_mtu, to->hop_ifindex);
		found = found_large(&route, to->hop_mtu);
	} else {
		NOTE(hop, to->hop_ifindex, to->hop_expires - here->tick);
		rewrite_to(packet, part, about, to);
		rewrite_hop(here->ctx, packet, to->hop_dst, to->hop_src);
		packet->out.ifindex = to->hop_ifindex;
		packet->out.vlan[0] = to->hop_vlan;
		packet->out.protocol[0] = bpf_htons(ETH_P_8021Q);
		return REASON_forward_hop;
	}
	found = forget(here, found);
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED && !may_be_cut(packet))
		return too_large(here, route.mtu_result);
	rewrite_to(packet, part, about, to);
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return REASON_forward_cut;
	if (found != BPF_FIB_LKUP_RET_SUCCESS ||
	    !leave_by(here, packet, route.ifindex))
		return REASON_forward_kernel;
	rewrite_hop(here->ctx, packet, route.dmac, route.smac);
	return REASON_forward_fib;
}

static __always_inline enum reason send_return(struct here *here,
					       struct packet *packet,
					       enum part part,
					       struct embedded *about,
					       const struct service *service)
{
	const __be32 *client = packet->destination;
	struct gateway *gateway =
		lookup_gateway(here, packet->v6,
			       client[packet->v6 ? 0 : V4_WORD]);
	struct bpf_fib_lookup route;
	long found;

	if (!gateway) {
		NOTE(no_hop, 0, 0);
		found = lookup_route(here->ctx, packet, here->ifindex,
				     service->vip, client, &route);
		NOTE(route, route.ifindex, found);
	} else if (gateway->hop_mtu && packet->bytes > gateway->hop_mtu) {
		NOTE(too_big, gateway->hop_mtu, gateway->hop_ifindex);
		found = found_large(&route, gateway->hop_mtu);
	} else {
		NOTE(hop, gateway->hop_ifindex, gateway->hop_expires - here->tick);
		rewrite_from(packet, part, about, service);
		rewrite_hop(here->ctx, packet, gateway->hop_dst,
			    gateway->hop_src);
		packet->out.ifindex = gateway->hop_ifindex;
		packet->out.vlan[0] = gateway->hop_vlan;
		packet->out.protocol[0] = bpf_htons(ETH_P_8021Q);
		return REASON_return_hop;
	}
	found = forget(here, found);
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED && !may_be_cut(packet))
		return too_large(here, route.mtu_result);
	rewrite_from(packet, part, about, service);
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return REASON_return_cut;
	if (found != BPF_FIB_LKUP_RET_SUCCESS ||
	    !leave_by(here, packet, route.ifindex))
		return REASON_return_kernel;
	rewrite_hop(here->ctx, packet, route.dmac, route.smac);
	return REASON_return_fib;
}

/* The first of a packet's fragments leaves: where the later ones go. */
static __always_inline void remember_fragment(struct here *here,
					      const struct packet *packet,
					      u32 ref, u32 service, u32 endpoint)
{
	struct fragment fragment = {
		.ref = ref,
		.service = service,
		.endpoint = endpoint,
		.tick = here->tick,
	};
	struct fragment_key key;

	if (!packet->fragmented || DRY_RUN)
		return;
	fragment_of(&key, packet);
	fragments.update(&key, &fragment);
}

/* ---- client to endpoint -------------------------------------------------- */

/* Whether a cached flow's endpoint may go on serving it. */
static __always_inline bool still_serves(const struct service *service,
					 u64 state, u64 life)
{
	if (!(state & ENDPOINT_DOWN))
		return true;
	return (service->flags & SERVICE_ON_DOWN_KEEP) &&
	       (life & LIFE(FLOW_ESTABLISHED));
}

/* Demand is the group's, whoever is given the flow. */
static __always_inline void count_new(struct here *here, u32 live, u32 given,
				      bool spilled, bool remembered)
{
	struct endpoint_counters *counted = lookup_counters(here->cpu, live);

	NOTE(counted, live, COUNTED_new);
	if (counted && live) {
		COUNT(counted->offered, 1);
		COUNT(counted->spilled, spilled);
	}
	counted = lookup_counters(here->cpu, given);
	if (counted) {
		COUNT(counted->flows, 1);
		COUNT(counted->unremembered, !remembered);
	}
}

static __always_inline void count_midstream(struct here *here, u32 live)
{
	struct endpoint_counters *counted = lookup_counters(here->cpu, live);

	NOTE(counted, live, COUNTED_midstream);
	if (counted && live)
		COUNT(counted->midstream, 1);
}

/*
 * A UDP packet of a flow that found no place. The next one will look as new, so
 * none counts as a flow or as demand: a full cache must not buy shadows.
 */
static __always_inline void count_unremembered(struct here *here, u32 given)
{
	struct endpoint_counters *counted = lookup_counters(here->cpu, given);

	NOTE(counted, given, COUNTED_unremembered);
	if (counted)
		COUNT(counted->unremembered, 1);
}

/* A new flow that its endpoint's limit sent elsewhere. */
static __always_inline void count_limited(struct here *here, u32 hashed)
{
	struct endpoint_counters *counted = lookup_counters(here->cpu, hashed);

	if (counted)
		COUNT(counted->limited, 1);
}

/*
 * Limits are for new flows that are going to be remembered: later packets of
 * others would not follow. Nor for a client whose flows go alike.
 */
static __always_inline bool is_limited(const struct service *service,
				       const struct packet *packet)
{
	if (service->flags & SERVICE_AFFINITY)
		return false;
	return packet->protocol == IPPROTO_UDP || opens(packet);
}

/*
 * A flow that the cache does not know, or no longer: pick and remember, at its
 * old place if it has one. NULL: nobody is there to serve it.
 */
static __always_inline struct endpoint *start_flow(struct here *here, u32 index,
						   const struct service *service,
						   const struct packet *packet,
						   u64 hash,
						   const struct place *place,
						   u32 *ref)
{
	struct choice choice = {};
	struct endpoint *other;
	u32 kept = 0, room, at;
	u64 state;

	if (is_no_client(here, packet->source)) {
		NOTE(no_client, 0, 0);
		here->no_client = true;
		return NULL;
	}
	/* The RST of an unknown flow is its end: nothing to remember. */
	room = !(packet->tcp_flags & TCP_RST) && may_remember(here);
	room = forget(here, room);
	choice = pick(here, index, service, packet,
		      pick_bits(here, service, packet->v6, packet->source, hash),
		      forget(here, room && is_limited(service, packet)));
	if (!choice.ref)
		return NULL;
	if (room)
		kept = remember(here, hash, choice.ref,
				first_life(here->tick, packet,
					   times_handshake(here, hash)),
				index, packet, place);
	if (kept && kept != choice.ref) {	/* another CPU was first */
		NOTE(taken, kept, 0);
		other = lookup_present(kept, &state);
		if (other) {
			*ref = kept;
			return other;
		}
	}
	kept = forget(here, kept);
	if (kept && choice.ref != choice.hashed)
		count_limited(here, ref_index(choice.hashed));
	if (!kept && choice.ref != choice.hashed) {	/* the next goes by hash */
		NOTE(not_kept, choice.hashed, 0);
		choice.ref = choice.hashed;
		choice.spilled = ref_index(choice.ref) != choice.live;
	}
	*ref = choice.ref;
	if (packet->protocol == IPPROTO_TCP && !opens(packet))
		count_midstream(here, choice.live);
	else if (packet->protocol == IPPROTO_UDP && !kept)
		count_unremembered(here, ref_index(choice.ref));
	else
		count_new(here, choice.live, ref_index(choice.ref),
			  choice.spilled, kept);
	at = ref_index(choice.ref);
	return endpoints.lookup(&at);
}

/* A SYN that met an entry of its tag; false: it opens a new flow. */
static __always_inline bool goes_on(struct here *here, u32 index,
				    const struct service *service,
				    const struct packet *packet, u64 hash,
				    const struct place *place, u64 state,
				    u64 life)
{
	struct flow_key *key = lookup_key(place);
	bool same = key && same_key(key, index, packet);
	u64 pick;
	u32 live;

	if ((life & LIFE(CLOSING)) ||
	    idle(here->settings, here->tick, life, IPPROTO_TCP)) {
		NOTE(stale, life & LIFE(CLOSING) ? STALE_closed : STALE_idle, 0);
		return false;
	}
	/*
	 * A stray SYN must not end what is still being drained: the endpoint
	 * answers it (RFC 5961 section 4), and if the client did start anew it
	 * resets.
	 */
	if (!takes_new(state) && !(same && (life & LIFE(FLOW_ESTABLISHED)))) {
		NOTE(stale, STALE_draining, 0);
		return false;
	}
	if (!same) {
		NOTE(other_tuple, 0, 0);
		/*
		 * Another flow of the same tag. Its later packets carry no
		 * more than the tag, so they would go to this entry's endpoint:
		 * its SYN goes there at once.
		 */
		pick = pick_bits(here, service, packet->v6, packet->source, hash);
		live = ref_index(lookup_ring(here, service, pick, 0));
		count_new(here, live, ref_index(place->id), false, false);
		return true;
	}
	/*
	 * Sent again: which SYN will the answer be to? Without its stamp there
	 * is no sample (Karn's rule, RFC 6298 section 3).
	 */
	if ((life & LIFE(FLOW_SYN | FLOW_SYNACK)) == LIFE(FLOW_SYN) &&
	    (life & LIFE_STAMP))
		swap(&place->flow->life, life, life & ~(u64)LIFE_STAMP);
	return true;
}

/* A client's packet may start a request, or give up the one in flight. */
static __always_inline void note_request(struct here *here,
					 const struct service *service,
					 const struct packet *packet, u64 hash,
					 const struct place *place, u64 life,
					 u64 gained)
{
	u32 due = life;
	struct request_counters *counted;
	bool far;

	if (life & LIFE(FLOW_REQUEST)) {
		if ((packet->tcp_flags & TCP_RST) &&
		    end_request(place->flow, life, packet->sequence))
			count_aborted(here, ref_index(place->id));
		return;
	}
	if (!(life & LIFE(FLOW_ESTABLISHED | FLOW_MIDSTREAM)))
		return;
	if (gained & LIFE(FLOW_ESTABLISHED))
		due = packet->sequence;
	if ((packet->tcp_flags & TCP_RST) ||
	    !asks(here->ctx, packet, service->flags)) {
		if (is_tls_finished(here->ctx, packet, service->flags))
			due = packet->sequence + packet->payload - 1;
		else if (!(gained & LIFE(FLOW_ESTABLISHED)))
			return;
		expect_request(place->flow, life, due);
		return;
	}
	if (sent_again(packet, due, &far)) {
		NOTE(request, ASKED_sent_again, ref_index(place->id));
		if (far)
			expect_request(place->flow, life, packet->sequence + 1);
		return;
	}
	if (!start_request(place->flow, life,
			   request_stamp(hash, packet->sequence, due,
					 service->request_shift), here->tick))
		return;
	NOTE(request, ASKED_started, ref_index(place->id));
	counted = lookup_requests(here->cpu, ref_index(place->id));
	if (counted)
		COUNT(counted->requests, 1);
}

/* What a client's packet tells of its flow. */
static __always_inline void note_forward(struct here *here,
					 const struct service *service,
					 const struct packet *packet, u64 hash,
					 const struct place *place, u64 life)
{
	u64 set = client_tells(packet, life), gained;
	struct endpoint_counters *counted;

	if (watches(service) &&
	    moves_seen(here->settings, life, set, here->tick)) {
		keep_late(place->flow, &life, here->tick);
		life = forget(here, life);
	}
	gained = update_life(here->settings, place->flow, &life, set,
			     here->tick);
	NOTE(gained, gained >> LIFE_FLAGS, 0);
	if (watches(service))
		note_request(here, service, packet, hash, place, life, gained);
	if (gained & LIFE(FLOW_ESTABLISHED))
		count_completed(here, service, packet->v6, packet->source, hash);
	if (both_fins(gained, life)) {
		counted = lookup_counters(here->cpu, ref_index(place->id));
		if (counted)
			COUNT(counted->fins, 1);
	}
}

/* The cached flow's endpoint, or NULL: the entry is as good as none. */
static __always_inline struct endpoint *go_on(struct here *here, u32 index,
					      const struct service *service,
					      const struct packet *packet,
					      u64 hash,
					      const struct place *place)
{
	u64 life = *(volatile u64 *)&place->flow->life, state;
	struct endpoint *to = lookup_present(place->id, &state);

	NOTE(life, 0, life);
	if (!to || to->service != index) {
		NOTE(stale, STALE_gone, 0);
		return NULL;
	}
	if (!still_serves(service, state, life)) {
		NOTE(stale, STALE_down, 0);
		say(here, EVENT_ENDPOINT_DOWN, index, ref_index(place->id), 0,
		    packet);
		return NULL;
	}
	if (opens(packet))
		return goes_on(here, index, service, packet, hash, place, state,
			       life) ? to : NULL;
	/* TCP says when a flow ends; UDP ends when it was silent for long. */
	if (packet->protocol == IPPROTO_UDP &&
	    idle(here->settings, here->tick, life, IPPROTO_UDP)) {
		NOTE(stale, STALE_idle, 0);
		return NULL;
	}
	note_forward(here, service, packet, hash, place, life);
	return to;
}

/* The endpoint of the flow, known or new. */
static __always_inline struct endpoint *assign(struct here *here, u32 index,
					       const struct service *service,
					       const struct packet *packet,
					       u64 hash, u32 *ref)
{
	struct place place = { .way = NOWHERE };
	struct endpoint *to;

	/*
	 * In a flood SYNs go by hash alone, not even looked for: each would be a
	 * line from memory. One sent again goes where its first one went, unless
	 * ring or spill have changed since.
	 */
	if (!opens(packet) || !flooded(here))
		place = find_flow(here, hash);
	else
		NOTE(flooded, 0, 0);
	if (place.flow) {
		*ref = place.id;
		to = go_on(here, index, service, packet, hash, &place);
		if (to)
			return to;
	}
	return start_flow(here, index, service, packet, hash, &place, ref);
}

static __always_inline enum reason forward(struct here *here,
					   struct packet *packet, u32 index,
					   const struct service *service)
{
	struct traffic *traffic;
	struct endpoint *to;
	enum reason reason;
	u32 ref = 0;
	u64 hash;

	if (packet->ttl <= 1)
		return REASON_pass_ttl;
	hash = hash_flow(here->settings->hash_key, packet->v6, packet->protocol,
			 packet->source, packet->destination,
			 packet->source_port, packet->destination_port);
	to = assign(here, index, service, packet, hash, &ref);
	NOTE(endpoint, to ? ref : 0, 0);
	if (!to)
		return here->no_client ?
			       REASON_drop_source :
			       REASON_drop_no_endpoint;
	reason = send_forward(here, packet, WHOLE, NULL, to);
	if (reason == REASON_pass_mtu)
		return reason;
	traffic = lookup_forwarded(here->cpu, ref_index(ref));
	if (!traffic)
		return REASON_abort_impossible;
	count_traffic(traffic, packet->bytes);
	remember_fragment(here, packet, ref, index, ref_index(ref));
	return reason;
}

/* ---- endpoint to client -------------------------------------------------- */

static __always_inline void count_time(struct here *here,
				       struct histogram *times, u32 us)
{
	u64 bucket = forget(here, histogram_bucket(us));

	if (times && bucket < HISTOGRAM_BUCKETS)
		COUNT_SHARED(times->bucket[bucket], 1);
}

static __always_inline void sample_rtt(struct here *here, u32 index, u64 life,
				       struct endpoint_counters *counted)
{
	u32 us;

	if (!stamped(life, here->tick))
		return;
	us = us_since_stamp(life);
	COUNT(counted->rtt_count, 1);
	COUNT(counted->rtt_sum_us, us);
	count_time(here, rtt.lookup(&index), us);
}

static __always_inline void count_answered(struct here *here, u32 index,
					   u64 life)
{
	struct request_counters *counted = lookup_requests(here->cpu, index);
	u32 us;

	NOTE(request, ASKED_answered, index);
	if (!counted)
		return;
	COUNT(counted->answered, 1);
	if (!(life & LIFE_STAMP))
		return;
	us = response_us(life, here->tick);
	COUNT(counted->response_count, 1);
	COUNT(counted->response_sum_us, us);
	count_time(here, response.lookup(&index), us);
}

/* An endpoint's packet may answer the request in flight, or refuse to. */
static __always_inline void note_response(struct here *here, u32 index,
					  const struct service *service,
					  const struct packet *packet,
					  struct flow *flow, u64 life)
{
	u8 ends = packet->tcp_flags & (TCP_FIN | TCP_RST);
	bool answered;
	u64 request;

	if (!(life & LIFE(FLOW_REQUEST)))
		return;
	answered = !(ends & TCP_RST) &&
		   answers(here->ctx, packet, service->flags);
	if (!answered && !ends)
		return;
	request = end_request(flow, life, packet->acknowledged);
	if (!request)
		return;
	if (answered)
		count_answered(here, index, request);
	else
		count_aborted(here, index);
}

/* What the answer says about its flow. */
static __always_inline void note_return(struct here *here, u32 index,
					const struct service *service,
					const struct packet *packet, u64 hash,
					struct flow *flow,
					struct endpoint_counters *counted)
{
	u64 life = *(volatile u64 *)&flow->life, before, gained;
	u64 set = endpoint_tells(packet, life);

	if (watches(service) &&
	    moves_seen(here->settings, life, set, here->tick)) {
		keep_late(flow, &life, here->tick);
		life = forget(here, life);
	}
	before = life;
	gained = update_life(here->settings, flow, &life, set, here->tick);
	NOTE(gained, gained >> LIFE_FLAGS, 0);
	if (watches(service))
		note_response(here, index, service, packet, flow, life);
	if (gained & LIFE(FLOW_SYNACK))
		sample_rtt(here, index, before, counted);
	if (packet->protocol == IPPROTO_TCP && (packet->tcp_flags & TCP_SYN) &&
	    (life & LIFE(FLOW_SYNACK)))
		expect_ack(flow, life, packet);
	if ((gained & LIFE(FLOW_ESTABLISHED)) && !(life & LIFE(FLOW_MIDSTREAM)))
		count_completed(here, service, packet->v6, packet->destination,
				hash);
	COUNT(counted->fins, both_fins(gained, life));
	COUNT(counted->resets, !!(gained & LIFE(FLOW_RST)));
}

/*
 * To a VIP, but not to a service there. The kernel would send it back to the
 * router, unless the VIP is an address of this host's own, whose other ports
 * (its SSH, answers to its own connections) are not ours.
 */
static __always_inline bool would_loop(const struct packet *packet)
{
	return is_vip(packet->destination) && !direct_kind(packet->destination);
}

/* A packet from an endpoint's address and port. */
static __always_inline enum reason giveback(struct here *here,
					    struct packet *packet, u32 index,
					    const struct endpoint *from)
{
	u32 at = from->service;
	struct service *service = services.lookup(&at);
	struct endpoint_counters *counted;
	struct traffic *traffic;
	enum reason reason;
	struct place place;
	u64 hash;

	counted = lookup_counters(here->cpu, index);
	traffic = lookup_returned(here->cpu, index);
	if (!service || !counted || !traffic)
		return REASON_abort_impossible;
	NOTE(service, at, 0);
	hash = hash_flow(here->settings->hash_key, packet->v6, packet->protocol,
			 packet->destination, service->vip,
			 packet->destination_port, service->port);
	place = find_flow(here, hash);
	NOTE(life, 0, place.flow ? *(volatile u64 *)&place.flow->life : 0);
	if (!place.flow || (u32)place.id != ref_of(index, from->state) ||
	    idle(here->settings, here->tick,
		 *(volatile u64 *)&place.flow->life, packet->protocol)) {
		NOTE(stale, !place.flow || (u32)place.id != ref_of(index, from->state) ?
				    STALE_gone : STALE_idle, 0);
		NOTE(direct, direct_kind(packet->destination), 0);
		if (direct_kind(packet->destination))
			return REASON_pass_direct;
		/* Neither a client's nor ours to send: it would loop. */
		if (is_vip(packet->destination))
			return REASON_drop_vip_port;
		place.flow = NULL;
	}
	if (packet->ttl <= 1)
		return REASON_pass_ttl;
	reason = send_return(here, packet, WHOLE, NULL, service);
	if (reason == REASON_pass_mtu)
		return reason;
	if (place.flow)
		note_return(here, index, service, packet, hash, place.flow,
			    counted);
	count_traffic(traffic, packet->bytes);
	remember_fragment(here, packet, 0, at, index);
	return reason;
}

/* ---- later fragments ------------------------------------------------------ */

/* To the endpoint of the first one, while that may have it. */
static __always_inline enum reason follow_first(struct here *here,
						struct packet *packet, u32 ref)
{
	struct endpoint *to;
	u64 state;

	to = lookup_present(ref, &state);
	NOTE(endpoint, to ? ref : 0, 0);
	if (!to || (state & ENDPOINT_DOWN))
		return REASON_drop_fragment;
	return send_forward(here, packet, LATER_FRAGMENT, NULL, to);
}

static __always_inline enum reason go_after(struct here *here,
					    struct packet *packet,
					    const struct fragment *first)
{
	u32 at = first->service, endpoint = first->endpoint;
	struct traffic *to = lookup_forwarded(here->cpu, endpoint);
	struct traffic *back = lookup_returned(here->cpu, endpoint);
	struct service *service = services.lookup(&at);
	enum reason reason;

	if (!service || !to || !back)
		return REASON_abort_impossible;
	NOTE(service, at, 0);
	if (packet->ttl <= 1)
		return REASON_pass_ttl;
	if (first->ref) {
		reason = follow_first(here, packet, first->ref);
		if (reason == REASON_pass_mtu || reason == REASON_drop_fragment)
			return reason;
		count_traffic(to, packet->bytes);
		return reason;
	}
	NOTE(sender, endpoint, 0);
	reason = send_return(here, packet, LATER_FRAGMENT, NULL, service);
	if (reason == REASON_pass_mtu)
		return reason;
	count_traffic(back, packet->bytes);
	return reason;
}

/* Without ports; only its first one tells whose it is. */
static __always_inline enum reason later_fragment(struct here *here,
						  struct packet *packet)
{
	struct fragment_key key;
	struct fragment *first;

	fragment_of(&key, packet);
	first = fragments.lookup(&key);
	NOTE(fragment, first && !fragment_old(first, here->tick), 0);
	if (first && !fragment_old(first, here->tick))
		return go_after(here, packet, first);
	return would_loop(packet) ? REASON_drop_fragment : REASON_pass_fragment;
}

/* ---- ICMP errors --------------------------------------------------------- */

/* From the client's side, about an answer that left with the VIP for its source. */
static __always_inline enum reason follow_to_endpoint(struct here *here,
						      struct packet *packet,
						      struct embedded *about)
{
	struct target target;
	struct service *service;
	struct endpoint *to;
	struct place place;
	u32 index;
	u64 state;

	target_of(&target, about->source, about->source_port, about->protocol);
	service = lookup_service(here, &target, &index);
	if (!service || !(service->flags & SERVICE_PRESENT))
		return REASON_pass_icmp;
	place = find_flow(here, hash_flow(here->settings->hash_key, packet->v6,
					  about->protocol, about->destination,
					  about->source, about->destination_port,
					  about->source_port));
	if (!place.flow)
		return REASON_pass_icmp;
	to = lookup_present(place.id, &state);
	if (!to || to->service != index ||
	    !still_serves(service, state, *(volatile u64 *)&place.flow->life))
		return REASON_pass_icmp;
	NOTE(error_about, 0, 0);
	NOTE(service, index, 0);
	NOTE(endpoint, place.id, 0);
	return send_forward(here, packet, ICMP_ERROR, about, to);
}

/* From the endpoint's side, about what a client sent. */
static __always_inline enum reason follow_to_client(struct here *here,
						    struct packet *packet,
						    struct embedded *about)
{
	struct target target;
	struct service *service;
	struct endpoint *from;
	struct place place;
	u32 index, at;

	target_of(&target, about->destination, about->destination_port,
		  about->protocol);
	from = lookup_sender(here, &target, &index);
	if (!from)
		return REASON_pass_icmp;
	at = from->service;
	service = services.lookup(&at);
	if (!service)
		return REASON_abort_impossible;
	place = find_flow(here, hash_flow(here->settings->hash_key, packet->v6,
					  about->protocol, about->source,
					  service->vip, about->source_port,
					  service->port));
	if (!place.flow || (u32)place.id != ref_of(index, from->state))
		return REASON_pass_icmp;
	NOTE(error_about, 1, 0);
	NOTE(sender, index, 0);
	NOTE(service, at, 0);
	return send_return(here, packet, ICMP_ERROR, about, service);
}

static __always_inline bool same_address(const __be32 *one, const __be32 *other)
{
	return one[0] == other[0] && one[1] == other[1] && one[2] == other[2] &&
	       one[3] == other[3];
}

/* Follows the flow that it is about, or is the kernel's. */
static __always_inline enum reason follow(struct here *here,
					  struct packet *packet)
{
	struct embedded about;
	enum reason reason;

	if (!parse_embedded(packet, &about) || packet->ttl <= 1 ||
	    !same_address(packet->destination, about.source))
		return REASON_pass_icmp;
	reason = follow_to_endpoint(here, packet, &about);
	if (reason == REASON_pass_icmp)
		reason = follow_to_client(here, packet, &about);
	return reason;
}

/* To a VIP that nobody else would answer for. */
static __always_inline enum reason answer(struct here *here,
					  struct packet *packet)
{
	if (!is_echo_request(packet))
		return REASON_drop_vip_port;
	if (is_no_client(here, packet->source)) {
		NOTE(no_client, 0, 0);
		return REASON_drop_source;
	}
	rewrite_echo(here->ctx, packet);
	return REASON_reply_echo;
}

static __always_inline enum reason icmp(struct here *here,
					struct packet *packet)
{
	enum reason reason = follow(here, packet);

	if (reason == REASON_pass_icmp && would_loop(packet))
		reason = answer(here, packet);
	return reason;
}

/* ---- every packet -------------------------------------------------------- */

static __always_inline enum reason route(struct here *here,
					 struct packet *packet)
{
	struct endpoint *endpoint;
	struct service *service;
	struct target target;
	u32 index;

	target_of(&target, packet->destination, packet->destination_port,
		  packet->protocol);
	service = lookup_service(here, &target, &index);
	if (service && (service->flags & SERVICE_PRESENT)) {
		NOTE(service, index, 0);
		return forward(here, packet, index, service);
	}
	target_of(&target, packet->source, packet->source_port,
		  packet->protocol);
	endpoint = lookup_sender(here, &target, &index);
	if (endpoint) {
		NOTE(sender, index, 0);
		return giveback(here, packet, index, endpoint);
	}
	return would_loop(packet) ? REASON_drop_vip_port : REASON_pass_other;
}

/* Whether the frame is one of this host's: untagged, or of a VLAN that it has. */
static __always_inline bool arrive(struct here *here,
				   const struct packet *packet)
{
	struct port_key key = { .ifindex = here->ctx->ingress_ifindex };
	u32 *device;

	here->ifindex = key.ifindex;
	if (!packet->tags || !(packet->vlan[0] | packet->vlan[1]))
		return true;
	key.vlan[0] = packet->vlan[0];
	key.vlan[1] = packet->vlan[1];
	device = vlans.lookup(&key);
	NOTE(device, device ? *device : 0, 0);
	if (!device)
		return false;
	here->ifindex = *device;
	return true;
}

static __always_inline enum reason sort(struct here *here,
					struct packet *packet)
{
	enum parsed found;

	packet->zero = forget(here, 0);
	found = parse(packet, here->ctx);
	NOTE(parsed, found, packet->tags);
	if (found != PARSED_NOT_IP && !arrive(here, packet))
		return REASON_pass_vlan;
	switch (found) {
	case PARSED:
		return route(here, packet);
	case PARSED_NOT_IP:
		return REASON_pass_not_ip;
	case PARSED_OTHER:
		return REASON_pass_other;
	case PARSED_VLAN:
		return REASON_pass_vlan;
	case PARSED_FRAGMENT:
		return later_fragment(here, packet);
	case PARSED_ICMP:
		return icmp(here, packet);
	case PARSED_OTHER_PROTOCOL:
		return would_loop(packet) ? REASON_drop_vip_port :
					    REASON_pass_not_ip;
	case PARSED_BROKEN:
		return would_loop(packet) ? REASON_drop_broken :
					    REASON_pass_other;
	}
	return REASON_abort_impossible;
}

static __always_inline bool is_redirect(enum reason reason)
{
	return reason == REASON_forward_hop || reason == REASON_forward_fib ||
	       reason == REASON_return_hop || reason == REASON_return_fib;
}

/* Of the interface that the frame came in by, on this CPU. */
static __always_inline struct reasons *lookup_reasons(const struct here *here)
{
	u32 ifindex = here->ctx->ingress_ifindex;
	u32 row = interface_row(here->settings->interface_multiplier, ifindex);
	u32 index;
	struct interface *interface = interfaces.lookup(&row);

	if (!interface || interface->ifindex != ifindex)
		row = OTHER_INTERFACES;
	index = here->cpu * INTERFACE_ROWS + row;
	return reasons.lookup(&index);
}

/* The one way out: counts the reason and names the verdict. */
static __always_inline int leave(struct here *here, struct packet *packet,
				 enum reason reason)
{
	struct reasons *counted = lookup_reasons(here);

	if (!counted)
		return XDP_ABORTED;
	if (is_redirect(reason) && (packet->tags | packet->out.vlan[0]) &&
	    !retag(here->ctx, packet))
		reason = REASON_abort_impossible;
	NOTE(reason, reason, here->tick);
	COUNT(counted->count[reason % REASON_SLOTS], 1);
	switch (reason) {
	case REASON_forward_hop:
	case REASON_forward_fib:
	case REASON_return_hop:
	case REASON_return_fib:
		return bpf_redirect(packet->out.ifindex, 0);
	case REASON_reply_echo:
	case REASON_reply_ttl:
	case REASON_reply_mtu:
		/* XDP_TX would wait in a veth whose peer has GRO only. */
		return bpf_redirect(here->ctx->ingress_ifindex, 0);
	case REASON_drop_vip_port:
	case REASON_drop_no_endpoint:
	case REASON_drop_broken:
	case REASON_drop_fragment:
	case REASON_drop_source:
	case REASON_drop_ttl:
	case REASON_drop_mtu:
	case REASON_drop_icmp_limit:
		return XDP_DROP;
	case REASON_abort_impossible:
		return XDP_ABORTED;
	default:
		return XDP_PASS;
	}
}

/* Does not return, unless nobody is there: then the packet is the kernel's. */
static __always_inline void hand_to_refuse(struct here *here, enum reason reason)
{
	u32 *refused_mtu = lookup_refused_mtu(here);

	if (refused_mtu && reason == REASON_pass_ttl)
		*refused_mtu = 0;
	refusals.call(here->ctx, 0);
}

static __always_inline int long_way(struct here *here)
{
	struct packet packet = {};
	enum reason reason;

	NOTE(long_way, 0, 0);
	reason = sort(here, &packet);
	if (reason == REASON_pass_ttl || reason == REASON_pass_mtu)
		hand_to_refuse(here, reason);
	return leave(here, &packet, reason);
}

#include "hit.c"

/* False: the program is not set up. */
static __always_inline bool begin(struct here *here)
{
	u32 zero = 0;

	here->cpu = bpf_get_smp_processor_id();
	here->tick = now_tick(here->cpu);
	here->settings = settings.lookup(&zero);
	return here->settings && may_note(here);
}

int steer(struct xdp_md *ctx)
{
	struct here here = { .ctx = ctx };
	int verdict;

	if (!begin(&here))
		return XDP_ABORTED;
	capture_came(&here);
	verdict = hit(&here);
	verdict = verdict == LONG_WAY ? long_way(&here) : verdict;
	capture_leaves(&here, verdict);
	return verdict;
}

#include "refuse.c"
