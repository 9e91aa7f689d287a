/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From client to endpoint: the flow that is known, or a new one, and what a
 * client's packet tells of it.
 *
 * A part of steer.c, for it looks things up in maps.
 */

/*
 * Whether the flow is one of those that an endpoint which drains has given up.
 * The short way takes none of such an endpoint's.
 */
static __always_inline bool is_evicted(u64 state, u64 id)
{
	return (u8)(id >> ID_TAG) < (u8)(state >> ENDPOINT_EVICTED_SHIFT);
}

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
	if (is_evicted(state, place->id)) {
		NOTE(stale, STALE_evicted, 0);
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
