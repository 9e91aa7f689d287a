/* SPDX-License-Identifier: GPL-2.0-only */
/* The kernel's routes and neighbours. Knows no map. */
#ifndef PENUMBRA_ROUTE_H
#define PENUMBRA_ROUTE_H

#include "parse.h"

#define AF_INET 2

/*
 * Whether the kernel knows a way for {source, destination}, and which:
 * BPF_FIB_LKUP_RET_* or a negative errno.
 */
static __always_inline long lookup_route(struct xdp_md *ctx,
					 const struct packet *packet,
					 __be32 source, __be32 destination,
					 struct bpf_fib_lookup *route)
{
	__builtin_memset(route, 0, sizeof(*route));
	route->family = AF_INET;
	route->l4_protocol = packet->protocol;
	route->tot_len = packet->bytes;
	route->tos = packet->ip->tos;
	route->ipv4_src = source;
	route->ipv4_dst = destination;
	route->ifindex = ctx->ingress_ifindex;
	return bpf_fib_lookup(ctx, route, sizeof(*route), 0);
}

#endif
