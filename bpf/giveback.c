/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From endpoint to client: whose answer it is, and what it tells.
 *
 * A part of steer.c, for it looks things up in maps.
 */

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
