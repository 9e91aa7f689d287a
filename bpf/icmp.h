/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ICMP and ICMPv6 errors: the packet that they are about, and its rewriting, so
 * that each side reads of the packet that it knows. Knows no map.
 */
#ifndef PENUMBRA_ICMP_H
#define PENUMBRA_ICMP_H

#include <linux/icmp.h>
#include <linux/icmpv6.h>

#include "rewrite.h"

#define OWN_TTL 64		/* of what we say ourselves */

/* Of errors and echoes, the same in both versions (RFC 792, RFC 4443). */
struct icmp_header {
	u8 type;
	u8 code;
	__sum16 check;
	u32 rest;
};

/* The packet that an error is about, as far as routers have to send it back. */
struct embedded {
	__be32 source[ADDRESS_WORDS] __attribute__((aligned(8)));
	__be32 destination[ADDRESS_WORDS] __attribute__((aligned(8)));
	void *ip;
	struct ports *ports;
	__be16 source_port;
	__be16 destination_port;
	u8 protocol;
};

static __always_inline bool is_error(const struct packet *packet, u8 type)
{
	if (packet->v6)
		return type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
	return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETERPROB;
}

static __always_inline u8 echo_request(const struct packet *packet)
{
	return packet->v6 ? ICMPV6_ECHO_REQUEST : ICMP_ECHO;
}

static __always_inline bool is_echo_request(const struct packet *packet)
{
	struct icmp_header *echo = packet->l4;

	return reaches(packet, echo + 1) &&
	       echo->type == echo_request(packet);
}

/* The reply, to go back as it came: addresses change places, which no sum sees. */
static __always_inline void rewrite_echo(struct xdp_md *ctx,
					 struct packet *packet)
{
	u8 from = echo_request(packet);
	u8 to = packet->v6 ? ICMPV6_ECHO_REPLY : ICMP_ECHOREPLY;
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct icmp_header *echo = packet->l4;
	u8 back[ETH_ALEN];

	if ((void *)(eth + 1) > packet->end ||
	    (void *)(echo + 1) > packet->end)
		return;
	echo->type = to;
	echo->check = csum_apply(echo->check, csum_change(bpf_htons(from << 8),
							  bpf_htons(to << 8)));
	rewrite_address(packet, true, packet->destination);
	rewrite_address(packet, false, packet->source);
	rewrite_ttl(packet, OWN_TTL);
	__builtin_memcpy(back, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, back, ETH_ALEN);
}

/* False: no error, or none about TCP or UDP that shows its ports. */
static __always_inline bool parse_embedded(const struct packet *packet,
					   struct embedded *about)
{
	struct icmp_header *error = packet->l4;
	struct ipv6hdr *ip6;
	struct iphdr *ip;
	void *at;

	if (!reaches(packet, error + 1) || !is_error(packet, error->type))
		return false;
	if (packet->v6) {
		ip6 = (void *)(error + 1);
		if (!reaches(packet, ip6 + 1) || ip6->version != 6)
			return false;
		copy_v6(about->source, &ip6->saddr);
		copy_v6(about->destination, &ip6->daddr);
		about->protocol = ip6->nexthdr;
		at = ip6 + 1;
	} else {
		ip = (void *)(error + 1);
		if (!reaches(packet, ip + 1) || ip->version != 4 ||
		    ip->ihl < IP_WORDS_MIN ||
		    (ip->frag_off & bpf_htons(IP_OFFSET)))
			return false;
		map_v4(about->source, ip->saddr, packet->zero);
		map_v4(about->destination, ip->daddr, packet->zero);
		about->protocol = ip->protocol;
		at = (void *)ip + ip->ihl * 4U;
	}
	if (about->protocol != IPPROTO_TCP && about->protocol != IPPROTO_UDP)
		return false;
	about->ip = error + 1;
	about->ports = at;
	if (!reaches(packet, about->ports + 1))
		return false;
	about->source_port = about->ports->source;
	about->destination_port = about->ports->destination;
	return true;
}

/* The change that the sums over the embedded packet have to follow. */
static __always_inline u64 rewrite_embedded(struct packet *packet,
					    struct embedded *about, bool source,
					    const __be32 *address, __be16 port)
{
	__be16 *old_port = source ? &about->ports->source :
				    &about->ports->destination;
	const __be32 *old = source ? about->source : about->destination;
	u64 change = csum_change(*old_port, port);
	struct ipv6hdr *ip6 = about->ip;
	struct iphdr *ip = about->ip;
	__be32 *at;
	u16 check;

	*old_port = port;
	if (!packet->v6) {
		if ((void *)(ip + 1) > packet->end)
			return 0;
		/*
		 * Its own checksum makes up for its address: to a sum over
		 * both nothing has changed.
		 */
		check = csum_apply(ip->check,
				   csum_change(old[V4_WORD], address[V4_WORD]));
		ip->check = check;
		*(source ? &ip->saddr : &ip->daddr) = address[V4_WORD];
		return change;
	}
	if ((void *)(ip6 + 1) > packet->end)
		return 0;
	at = source ? ip6->saddr.in6_u.u6_addr32 : ip6->daddr.in6_u.u6_addr32;
	return change + rewrite_words(at, address);
}

/*
 * The error with the other side's address and port for this one's: outside its
 * destination and inside the source (towards an endpoint), or the other way
 * round. The embedded TCP or UDP checksum stays: who gets the error can't check
 * it, for the packet is cut.
 */
static __always_inline void rewrite_error(struct packet *packet,
					  struct embedded *about,
					  bool to_endpoint,
					  const __be32 *address, __be16 port)
{
	u64 outer = rewrite_address(packet, !to_endpoint, address);
	struct icmp_header *error = packet->l4;
	u64 change = rewrite_embedded(packet, about, to_endpoint, address, port);

	if ((void *)(error + 1) > packet->end)
		return;
	/* RFC 4443 section 2.3: ICMPv6 sums over the addresses too. */
	if (packet->v6)
		change += outer;
	error->check = csum_apply(error->check, change);
}

#endif
