/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ICMP and ICMPv6 errors of our own: a packet becomes the answer to itself, back
 * the way it came. Knows no map.
 */
#ifndef PENUMBRA_REFUSE_H
#define PENUMBRA_REFUSE_H

#include "icmp.h"

#define IP_VERSION_4 4
#define IP_VERSION_6 6
#define TOS_CONTROL 0xc0	/* RFC 1812 section 4.3.2.5: precedence 6 */
#define LINK_MAX (ETH_HLEN + TAGS_MAX * sizeof(struct tag))
/*
 * How large an error may be: RFC 1812 section 4.3.2.3; RFC 4443 section 2.4 (c),
 * IPv6's least MTU. It quotes as much as fits.
 */
#define ERROR_V4_MAX 576
#define ERROR_V6_MAX 1280
#define SUMMED_WORDS (ERROR_V6_MAX / 4)
#define SUMMED_MASK 0x7fc	/* bytes of whole words */
#define ERROR_OFFSET_MASK 0x7f	/* of an ICMP header in a frame of ours */

struct error_v4 {
	struct iphdr ip;
	struct icmp_header icmp;
};

struct error_v6 {
	struct ipv6hdr ip;
	struct icmp_header icmp;
};

/*
 * No network outside routes it: RFC 1918, RFC 6598 (shared), RFC 3927 (link-local);
 * RFC 4193 (unique local).
 */
static __always_inline bool is_private(const __be32 *address)
{
	u32 top = bpf_ntohl(address[is_mapped(address) ? V4_WORD : 0]);

	if (!is_mapped(address))
		return top >> 25 == 0xfc00 >> 9;
	return top >> 24 == 10 || top >> 20 == 0xac1 || top >> 16 == 0xc0a8 ||
	       top >> 22 == 0x6440 >> 6 || top >> 16 == 0xa9fe;
}

static __always_inline u32 least(u32 one, u32 other)
{
	return one < other ? one : other;
}

static __always_inline u64 sum_words(const void *at, u32 words)
{
	u64 sum = 0;

#pragma unroll
	for (u32 i = 0; i < words; i++)
		sum += ((const u32 *)at)[i];
	return sum;
}

/*
 * What lies from :at to the end of the frame, added to :sum, not folded. How far
 * the loop came is forgotten behind it, or the verifier goes on 320 times: a sum
 * that begins as nothing it knows has no range, and where the rest is follows from
 * its length.
 */
static __always_inline u64 sum_rest(u64 sum, const void *at, u32 bytes,
				    const void *end)
{
	const void *rest = at + (bytes & SUMMED_MASK);

	for (u32 i = 0; i < SUMMED_WORDS; i++) {
		if (at + sizeof(u32) > end)
			break;
		sum += *(const u32 *)at;
		at += sizeof(u32);
	}
	if ((bytes & sizeof(u16)) && rest + sizeof(u16) <= end) {
		sum += *(const u16 *)rest;
		rest += sizeof(u16);
	}
	/* An odd last byte is the first of its word. */
	if ((bytes & 1) && rest + 1 <= end)
		sum += bpf_htons((u16)(*(const u8 *)rest << 8));
	return sum;
}

static __always_inline void write_error_v4(struct iphdr *ip, u32 bytes,
					   const __be32 *from, const __be32 *to)
{
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = IP_VERSION_4;
	ip->ihl = IP_WORDS_MIN;
	ip->tos = TOS_CONTROL;
	ip->tot_len = bpf_htons(bytes);
	/* Never cut, so it needs no identification (RFC 6864 section 4.1). */
	ip->frag_off = bpf_htons(IP_NO_FRAGMENTS);
	ip->ttl = OWN_TTL;
	ip->protocol = IPPROTO_ICMP;
	ip->saddr = from[V4_WORD];
	ip->daddr = to[V4_WORD];
	ip->check = csum_apply(0xffff, sum_words(ip, IP_WORDS_MIN));
}

/* Returns the sum of its pseudo-header (RFC 8200 section 8.1). */
static __always_inline u64 write_error_v6(struct ipv6hdr *ip, u32 bytes,
					  const __be32 *from, const __be32 *to)
{
	u32 payload = bytes - sizeof(*ip);

	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = IP_VERSION_6;
	ip->payload_len = bpf_htons(payload);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = OWN_TTL;
	__builtin_memcpy(&ip->saddr, from, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, to, sizeof(ip->daddr));
	return sum_words(from, ADDRESS_WORDS) + sum_words(to, ADDRESS_WORDS) +
	       bpf_htonl(payload) + bpf_htonl(IPPROTO_ICMPV6);
}

/* :mtu of the next hop that is too small for it; 0: its time is over. */
static __always_inline void write_error(struct icmp_header *error, bool v6,
					u32 mtu)
{
	if (v6) {
		error->type = mtu ? ICMPV6_PKT_TOOBIG : ICMPV6_TIME_EXCEED;
		error->code = 0;
	} else {
		error->type = mtu ? ICMP_DEST_UNREACH : ICMP_TIME_EXCEEDED;
		error->code = mtu ? ICMP_FRAG_NEEDED : ICMP_EXC_TTL;
	}
	error->check = 0;
	/* RFC 1191 section 4: the low half of it; RFC 4443 section 3.2: all. */
	error->rest = bpf_htonl(mtu);
}

/*
 * Cuts the frame after what is quoted and makes room before it. Returns the
 * bytes quoted, 0: it can't be done. The frame's pointers are void after that.
 */
static __always_inline u32 make_room(struct xdp_md *ctx,
				     const struct packet *packet, u32 l3_offset)
{
	u32 room = packet->v6 ? sizeof(struct error_v6) : sizeof(struct error_v4);
	u32 most = packet->v6 ? ERROR_V6_MAX : ERROR_V4_MAX;
	u32 linear = (u32)(packet->end - packet->l3);
	u32 quoted = least(least(packet->bytes, linear), most - room);
	u64 frame = bpf_xdp_get_buff_len(ctx);

	if (bpf_xdp_adjust_tail(ctx, (int)(l3_offset + quoted) - (int)frame) ||
	    bpf_xdp_adjust_head(ctx, -(int)room))
		return 0;
	return quoted;
}

/*
 * The answer to a packet that is as it came, from :teller to its source, with its
 * link layer the other way round and its tags. False: no room.
 */
static __always_inline bool rewrite_as_error(struct xdp_md *ctx,
					     const struct packet *packet,
					     const __be32 *teller, u32 mtu,
					     u64 zero)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 l3_offset = (packet->l3 - data) & L3_OFFSET_MASK, quoted;
	struct icmp_header *error;
	u8 link[LINK_MAX];
	u64 sum = zero, offset;
	void *l3;

	if (data + sizeof(link) > end)
		return false;
	__builtin_memcpy(link, data, sizeof(link));
	quoted = make_room(ctx, packet, l3_offset);
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	l3 = data + l3_offset;
	if (!quoted || data + sizeof(link) > end ||
	    l3 + sizeof(struct error_v6) > end)
		return false;
	__builtin_memcpy(data + ETH_ALEN, link, ETH_ALEN);
	__builtin_memcpy(data, link + ETH_ALEN, ETH_ALEN);
	/* The tags that it has; what is no tag any more is written over. */
	__builtin_memcpy(data + 2 * ETH_ALEN, link + 2 * ETH_ALEN,
			 sizeof(link) - 2 * ETH_ALEN);
	if (packet->v6) {
		sum += write_error_v6(l3, sizeof(struct error_v6) + quoted,
				      teller, packet->source);
		error = l3 + sizeof(struct ipv6hdr);
	} else {
		write_error_v4(l3, sizeof(struct error_v4) + quoted, teller,
			       packet->source);
		error = l3 + sizeof(struct iphdr);
	}
	write_error(error, packet->v6, mtu);
	/* What the loop proves of the one pointer differs with every way out. */
	offset = (void *)error - data;
	asm volatile("" : "+r"(offset));
	sum = sum_rest(sum, error, sizeof(*error) + quoted, end);
	error = data + (offset & ERROR_OFFSET_MASK);
	if ((void *)(error + 1) > end)
		return false;
	error->check = csum_apply(0xffff, sum);
	return true;
}

#endif
