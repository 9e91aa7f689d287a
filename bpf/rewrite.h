/* SPDX-License-Identifier: GPL-2.0-only */
/* Writers of addresses, ports, TTL and MACs; checksums follow. Know no map. */
#ifndef PENUMBRA_REWRITE_H
#define PENUMBRA_REWRITE_H

#include "csum.h"
#include "parse.h"

static __always_inline void rewrite_l4_check(struct packet *packet, u64 change)
{
	if (packet->protocol == IPPROTO_TCP) {
		packet->tcp->check = csum_apply(packet->tcp->check, change);
		return;
	}
	/* RFC 768: zero means "no checksum", so a sum of zero is all ones. */
	if (packet->udp->check) {
		packet->udp->check = csum_apply(packet->udp->check, change);
		if (!packet->udp->check)
			packet->udp->check = 0xffff;
	}
}

static __always_inline void rewrite_destination(struct packet *packet,
						const __be32 *address,
						__be16 port)
{
	struct iphdr *ip = packet->ip;
	u64 change = csum_change(ip->daddr, address[V4_WORD]);

	ip->check = csum_apply(ip->check, change);
	ip->daddr = address[V4_WORD];
	change += csum_change(packet->destination_port, port);
	rewrite_l4_check(packet, change);
	packet->tcp->dest = port;	/* at the same place in TCP and UDP */
}

static __always_inline void rewrite_source(struct packet *packet,
					   const __be32 *address, __be16 port)
{
	struct iphdr *ip = packet->ip;
	u64 change = csum_change(ip->saddr, address[V4_WORD]);

	ip->check = csum_apply(ip->check, change);
	ip->saddr = address[V4_WORD];
	change += csum_change(packet->source_port, port);
	rewrite_l4_check(packet, change);
	packet->tcp->source = port;	/* at the same place in TCP and UDP */
}

/* What a router does on the way out: TTL and link layer. */
static __always_inline void rewrite_hop(struct packet *packet, const u8 *dst,
					const u8 *src)
{
	struct iphdr *ip = packet->ip;
	u16 from = ip->ttl, to = from - 1;

	/* TTL is the first byte of its 16-bit word. */
	ip->check = csum_apply(ip->check, csum_change(bpf_htons(from << 8),
						      bpf_htons(to << 8)));
	ip->ttl = to;
	__builtin_memcpy(packet->eth->h_dest, dst, ETH_ALEN);
	__builtin_memcpy(packet->eth->h_source, src, ETH_ALEN);
}

#endif
