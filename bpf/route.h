/* SPDX-License-Identifier: GPL-2.0-only */
/* The kernel's routes and neighbours. Knows no map. */
#ifndef PENUMBRA_ROUTE_H
#define PENUMBRA_ROUTE_H

#include "parse.h"

#define AF_INET 2
#define AF_INET6 10
#define FLOWINFO_MASK bpf_htonl(0x0fffffff)
/* linux/bpf.h of Linux 6.7: before, the kernel refuses them. */
#define FIB_SKIP_NEIGHBOUR (1U << 2)
#define FIB_SOURCE (1U << 4)

/*
 * Whether the kernel knows a way for {source, destination}, and which:
 * BPF_FIB_LKUP_RET_* or a negative errno.
 */
static __always_inline long lookup_route(struct xdp_md *ctx,
					 const struct packet *packet,
					 u32 ingress_ifindex,
					 const __be32 *source,
					 const __be32 *destination,
					 struct bpf_fib_lookup *route)
{
	struct ipv6hdr *ip6 = header_v6(packet);
	struct iphdr *ip = header_v4(packet);

	__builtin_memset(route, 0, sizeof(*route));
	route->l4_protocol = packet->protocol;
	route->tot_len = packet->bytes;
	if (packet->v6) {
		route->family = AF_INET6;
		route->flowinfo = ip6 ? *(__be32 *)ip6 & FLOWINFO_MASK : 0;
		__builtin_memcpy(route->ipv6_src, source,
				 sizeof(route->ipv6_src));
		__builtin_memcpy(route->ipv6_dst, destination,
				 sizeof(route->ipv6_dst));
	} else {
		route->family = AF_INET;
		route->tos = ip ? ip->tos : 0;
		route->ipv4_src = source[V4_WORD];
		route->ipv4_dst = destination[V4_WORD];
	}
	route->ifindex = ingress_ifindex;
	return bpf_fib_lookup(ctx, route, sizeof(*route), 0);
}

/* What this host calls itself towards :to; false: the kernel can't tell. */
static __always_inline bool lookup_own_address(struct xdp_md *ctx, bool v6,
					       u32 ingress_ifindex,
					       const __be32 *to, __be32 *own)
{
	struct bpf_fib_lookup route = { .ifindex = ingress_ifindex };

	route.family = v6 ? AF_INET6 : AF_INET;
	if (v6)
		__builtin_memcpy(route.ipv6_dst, to, sizeof(route.ipv6_dst));
	else
		route.ipv4_dst = to[V4_WORD];
	if (bpf_fib_lookup(ctx, &route, sizeof(route),
			   FIB_SOURCE | FIB_SKIP_NEIGHBOUR))
		return false;
	if (v6)
		__builtin_memcpy(own, route.ipv6_src, sizeof(route.ipv6_src));
	else
		map_v4(own, route.ipv4_src, 0);
	return true;
}

#endif
