/* SPDX-License-Identifier: GPL-2.0-only */
/* The kernel's routes and neighbours. Knows no map. */
#ifndef PENUMBRA_ROUTE_H
#define PENUMBRA_ROUTE_H

#include "parse.h"

#define AF_INET 2
#define AF_INET6 10
#define FLOWINFO_MASK bpf_htonl(0x0fffffff)

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

#endif
