/* SPDX-License-Identifier: GPL-2.0-only */
/* Writers of addresses, ports, TTL and MACs; checksums follow. Know no map. */
#ifndef PENUMBRA_REWRITE_H
#define PENUMBRA_REWRITE_H

#include "csum.h"
#include "parse.h"

static __always_inline void rewrite_l4_check(struct packet *packet, u64 change)
{
	__sum16 check = *packet->check;

	/* RFC 768: zero means "no checksum", so a sum of zero is all ones. */
	if (packet->protocol == IPPROTO_UDP && !check)
		return;
	check = csum_apply(check, change);
	if (packet->protocol == IPPROTO_UDP && !check)
		check = 0xffff;
	*packet->check = check;
}

/* Returns the change that checksums over the address have to follow. */
static __always_inline u64 rewrite_v4(struct packet *packet, bool source,
				      const __be32 *address)
{
	struct iphdr *ip = header_v4(packet);
	__be32 *at;
	u64 change;

	if (!ip)
		return 0;
	at = source ? &ip->saddr : &ip->daddr;
	change = csum_change(*at, address[V4_WORD]);
	ip->check = csum_apply(ip->check, change);
	*at = address[V4_WORD];
	return change;
}

static __always_inline u64 rewrite_words(__be32 *at, const __be32 *address)
{
	u64 change = 0;

#pragma unroll
	for (u32 i = 0; i < ADDRESS_WORDS; i++) {
		change += csum_change(at[i], address[i]);
		at[i] = address[i];
	}
	return change;
}

static __always_inline u64 rewrite_v6(struct packet *packet, bool source,
				      const __be32 *address)
{
	struct ipv6hdr *ip = header_v6(packet);
	__be32 *at;

	if (!ip)
		return 0;
	at = source ? ip->saddr.in6_u.u6_addr32 : ip->daddr.in6_u.u6_addr32;
	return rewrite_words(at, address);
}

/*
 * Returns the change for sums over the address. Alone it does for a later
 * fragment, whose TCP or UDP checksum lies in the first one.
 */
static __always_inline u64 rewrite_address(struct packet *packet, bool source,
					   const __be32 *address)
{
	return packet->v6 ? rewrite_v6(packet, source, address) :
			    rewrite_v4(packet, source, address);
}

static __always_inline void rewrite_destination(struct packet *packet,
						const __be32 *address,
						__be16 port)
{
	u64 change = rewrite_address(packet, false, address);

	change += csum_change(packet->destination_port, port);
	rewrite_l4_check(packet, change);
	packet->ports->destination = port;
}

static __always_inline void rewrite_source(struct packet *packet,
					   const __be32 *address, __be16 port)
{
	u64 change = rewrite_address(packet, true, address);

	change += csum_change(packet->source_port, port);
	rewrite_l4_check(packet, change);
	packet->ports->source = port;
}

static __always_inline void rewrite_ttl(struct packet *packet, u8 to)
{
	struct ipv6hdr *ip6;
	struct iphdr *ip;
	u16 from;

	if (packet->v6) {
		ip6 = header_v6(packet);
		if (ip6)
			ip6->hop_limit = to;
		return;
	}
	ip = header_v4(packet);
	if (!ip)
		return;
	/* TTL is the first byte of its 16-bit word. */
	from = ip->ttl;
	ip->check = csum_apply(ip->check, csum_change(bpf_htons(from << 8),
						      bpf_htons((u16)to << 8)));
	ip->ttl = to;
}

/* Destination and source, 12 bytes in two stores; both at even addresses. */
static __always_inline void copy_macs(void *to, const void *from)
{
	*(u64_alias *)to = *(const u64_alias *)from;
	*(u32_alias *)(to + sizeof(u64)) =
		*(const u32_alias *)(from + sizeof(u64));
}

/* What a router does on the way out: TTL and link layer. */
static __always_inline void rewrite_hop(struct xdp_md *ctx,
					struct packet *packet, const u8 *dst,
					const u8 *src)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	rewrite_ttl(packet, packet->ttl - 1);
	if ((void *)(eth + 1) > packet->end)
		return;		/* never: for the verifier */
	__builtin_memcpy(eth->h_dest, dst, ETH_ALEN);
	__builtin_memcpy(eth->h_source, src, ETH_ALEN);
}

/*
 * The frame with the tags of the port that it leaves by; its pointers are void
 * after that. False: there is no room for them.
 */
static __always_inline bool retag(struct xdp_md *ctx, struct packet *packet)
{
	u32 want = !!packet->out.vlan[0] + !!packet->out.vlan[1];
	__be16 protocol = packet->v6 ? bpf_htons(ETH_P_IPV6) :
				       bpf_htons(ETH_P_IP);
	u8 addresses[2 * ETH_ALEN];
	struct ethhdr *eth = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct tag *tag;

	if ((void *)(eth + 1) > end)
		return false;
	__builtin_memcpy(addresses, eth->h_dest, sizeof(addresses));
	if (bpf_xdp_adjust_head(ctx, ((int)packet->tags - (int)want) *
					     (int)sizeof(*tag)))
		return false;
	eth = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if ((void *)(eth + 1) + TAGS_MAX * sizeof(*tag) > end)
		return false;
	__builtin_memcpy(eth->h_dest, addresses, sizeof(addresses));
	tag = (void *)&eth->h_proto;
#pragma unroll
	for (u32 i = 0; i < TAGS_MAX; i++) {
		if (!packet->out.vlan[i])
			break;
		tag->protocol = packet->out.protocol[i];
		tag->control = packet->out.vlan[i];
		tag++;
	}
	tag->protocol = protocol;
	return true;
}

#endif
