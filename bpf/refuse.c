/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets that can't go on, for their TTL ends here or they are too large for
 * their way: whoever sent them is told by ICMP. A program of its own, to which
 * steer() hands what is as it came: so the verifier looks at each alone, and they
 * share nothing but struct cpu.
 *
 * A part of steer.c, for it looks things up in maps.
 */

/* So many in a tick of this CPU (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)). */
static __always_inline bool may_refuse(struct here *here)
{
	struct cpu *own = cpus.lookup(&here->cpu);

	if (!own)
		return false;
	if (DRY_RUN)
		return (own->icmp_tick == here->tick ? own->icmp_sent : 0) <
		       here->settings->icmp_limit;
	if (own->icmp_tick != here->tick) {
		own->icmp_tick = here->tick;
		own->icmp_sent = 0;
	}
	if (own->icmp_sent >= here->settings->icmp_limit)
		return false;
	own->icmp_sent++;
	return true;
}

/* That it was sent to, or that the endpoint which sent it stands for. */
static __always_inline struct service *lookup_refusing(struct here *here,
						       const struct packet *packet)
{
	struct endpoint *endpoint;
	struct service *service;
	struct target target;
	u32 index;

	target_of(&target, packet->destination, packet->destination_port,
		  packet->protocol);
	service = lookup_service(here, &target, &index);
	if (service && (service->flags & SERVICE_PRESENT))
		return service;
	target_of(&target, packet->source, packet->source_port,
		  packet->protocol);
	endpoint = lookup_sender(here, &target, &index);
	if (!endpoint)
		return NULL;
	index = endpoint->service;
	return services.lookup(&index);
}

/*
 * Who tells it: this host, by the address that it has towards the sender, as
 * routers do (RFC 1812 section 4.3.2.4). The VIP, where the kernel knows no such
 * address, or where that is a private one and the VIP is not: filters on the way
 * drop what comes from those, and a "packet too big" that is lost is a connection
 * that hangs (RFC 6752 section 5).
 */
static __always_inline void pick_teller(struct here *here,
					const struct packet *packet,
					const struct service *service, u32 mtu,
					__be32 *teller)
{
	bool own = lookup_own_address(here->ctx, packet->v6, here->ifindex,
				      packet->source, teller) &&
		   !(is_private(teller) && !is_private(service->vip));

	if (!own)
		__builtin_memcpy(teller, service->vip, sizeof(service->vip));
	NOTE(refused, mtu, own);
}

static __always_inline enum reason tell_sender(struct here *here,
					       struct packet *packet, u32 mtu)
{
	__be32 teller[ADDRESS_WORDS] __attribute__((aligned(8)));
	struct service *service;
	enum parsed found;

	packet->zero = forget(here, 0);
	found = parse(packet, here->ctx);
	/* Neither a later fragment (RFC 1122 section 3.2.2) nor an ICMP error. */
	if (found != PARSED || !arrive(here, packet))
		return mtu ? REASON_drop_mtu : REASON_drop_ttl;
	service = lookup_refusing(here, packet);
	if (!service)
		return REASON_abort_impossible;
	if (is_no_client(here, packet->source)) {
		NOTE(no_client, 0, 0);
		return REASON_drop_source;
	}
	if (!may_refuse(here))
		return REASON_drop_icmp_limit;
	pick_teller(here, packet, service, mtu, teller);
	if (!rewrite_as_error(here->ctx, packet, teller, mtu, forget(here, 0)))
		return REASON_abort_impossible;
	return mtu ? REASON_reply_mtu : REASON_reply_ttl;
}

int refuse(struct xdp_md *ctx)
{
	struct here here = { .ctx = ctx };
	struct packet packet = {};
	u32 *refused_mtu;
	int verdict;

	if (!begin(&here))
		return XDP_ABORTED;
	refused_mtu = lookup_refused_mtu(&here);
	if (!refused_mtu)
		return XDP_ABORTED;
	verdict = leave(&here, &packet,
			tell_sender(&here, &packet, *refused_mtu));
	capture_leaves(&here, verdict);
	return verdict;
}
