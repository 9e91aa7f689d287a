/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What goes where a flow went: its packets' later fragments, and ICMP errors
 * about it, either way.
 *
 * A part of steer.c, for it looks things up in maps.
 */

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
	if (!to || to->service != index || is_evicted(state, place.id) ||
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
