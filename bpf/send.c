/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How a packet leaves: by a next hop that is trusted, or by what the kernel's
 * routes say, rewritten; and what becomes of one that is too large for that.
 *
 * A part of steer.c, for it looks things up in maps.
 */

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

/*
 * As the kernel would forward it: bpf_fib_lookup() heeds an MTU of the route's own
 * only where that is locked.
 */
static __always_inline long find_route(struct here *here,
				       const struct packet *packet,
				       const __be32 *source,
				       const __be32 *destination,
				       struct bpf_fib_lookup *route)
{
	long found = lookup_route(here->ctx, packet, here->ifindex, source,
				  destination, route);
	/* In place of the question, for the stack is short. */
	struct prefix *to = (void *)route->ipv6_src;
	u32 *mtu;

	NOTE(route, route->ifindex, found);
	to->length = 8 * sizeof(to->address);
	__builtin_memcpy(to->address, destination, sizeof(to->address));
	mtu = route_mtus.lookup(to);
	if (!mtu || !*mtu || packet->bytes <= *mtu ||
	    (found == BPF_FIB_LKUP_RET_FRAG_NEEDED && route->mtu_result <= *mtu))
		return found;
	NOTE(route_mtu, *mtu, 0);
	route->mtu_result = *mtu;
	return BPF_FIB_LKUP_RET_FRAG_NEEDED;
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
		found = find_route(here, packet, packet->source, to->address,
				   &route);
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
		found = find_route(here, packet, service->vip, client, &route);
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
