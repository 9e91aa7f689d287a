/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Cursor parsers: fill struct packet step by step, knowing no map. Each says
 * what it found; "broken" is for the caller to judge, for only a packet that
 * is ours may be dropped for it.
 */
#ifndef PENUMBRA_PARSE_H
#define PENUMBRA_PARSE_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "structs.h"

/*
 * Frames may come in several buffers, of which the first alone is seen here: a
 * build of its own (BPF_F_XDP_HAS_FRAGS), for interfaces with so large an MTU.
 */
#ifndef FRAGS
#define FRAGS 0
#endif

#define IP_NO_FRAGMENTS 0x4000
#define IP_MORE_FRAGMENTS 0x2000
#define IP_OFFSET 0x1fff
#define IP_WORDS_MIN 5
#define TCP_WORDS_MIN 5
#define EXTENSIONS_MAX 4	/* IPv6 extension headers looked past */
#define EXTENSION_UNIT 8	/* bytes that their length counts in */
#define FRAGMENT_BYTES 8	/* of IPv6's fragment header */
#define FRAGMENT_MORE bpf_htons(1)
#define FRAGMENT_OFFSET bpf_htons(0xfff8)
#define CHECK_AT_MASK 0x1f
#define FIRST_BUFFER_MIN 128	/* of several: tags, IPv6, TCP with options */
#define VID_MASK bpf_htons(0x0fff)
#define L3_OFFSET_MASK 0x3f
#define L4_OFFSET_MASK 0x3fff	/* of TCP and UDP in a frame: 4 extensions reach 8 KiB */

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_OFFSET_BYTE 12
#define TCP_FLAGS_BYTE 13

enum parsed {
	PARSED,			/* everything in struct packet is set */
	PARSED_NOT_IP,		/* nothing is set */
	PARSED_OTHER,		/* IP that is never ours */
	PARSED_VLAN,		/* more tags than TAGS_MAX */
	PARSED_FRAGMENT,	/* a later one; addresses are set, from here on */
	PARSED_ICMP,		/* packet->l4 is its header */
	PARSED_OTHER_PROTOCOL,
	PARSED_BROKEN,
};

/* Where an untagged frame has its EtherType. */
struct tag {
	__be16 protocol;
	__be16 control;		/* priority and VID */
};

struct ports {			/* at the same place in TCP and UDP */
	__be16 source;
	__be16 destination;
};

struct packet {
	void *end;
	struct ethhdr *eth;
	void *l3;		/* header_v4(), header_v6() */
	void *l4;		/* what it carries */
	struct ports *ports;
	__sum16 *check;		/* of TCP or UDP */
	__be32 source[ADDRESS_WORDS] __attribute__((aligned(8)));
	__be32 destination[ADDRESS_WORDS] __attribute__((aligned(8)));
	__be16 source_port;
	__be16 destination_port;
	u32 bytes;		/* of the IP packet */
	u32 payload;		/* bytes of TCP's */
	u32 payload_at;		/* in the frame */
	u32 sequence;		/* TCP's numbers */
	u32 acknowledged;
	u8 ttl;			/* or hop limit */
	/* Read anew where a path asks: kept in registers they cost a hit 3 ns. */
	volatile u8 protocol;
	volatile u8 tcp_flags;	/* TCP_*; 0 for UDP */
	volatile bool v6;
	volatile u8 check_at;	/* of the checksum, from the ports on */
	u32 zero;		/* is 0, which the verifier can't know */
	volatile u8 fragmented; /* the first fragment, or a later one */
	volatile __be32 fragment_id;
	volatile u8 tags;	/* of the frame as it came */
	__be16 vlan[TAGS_MAX];	/* VID, outer first; 0: none */
	struct port out;	/* how it is redirected */
#if FRAGS
	u32 beyond;		/* bytes of the frame behind :end */
#endif
};

/* IPv6's fragment header (RFC 8200 section 4.5). */
struct fragment_header {
	u8 next;
	u8 reserved;
	__be16 offset;		/* and FRAGMENT_MORE */
	__be32 id;
};

/* How far the parsers are. */
struct cursor {
	void *at;
	u32 bytes;		/* of the IP packet, from there on */
};

/*
 * Checked where they are used, or every step between would be verified twice,
 * for IPv4 and for IPv6. NULL: never.
 */
static __always_inline struct iphdr *header_v4(const struct packet *packet)
{
	struct iphdr *ip = packet->l3;

	return (void *)(ip + 1) > packet->end ? NULL : ip;
}

static __always_inline struct ipv6hdr *header_v6(const struct packet *packet)
{
	struct ipv6hdr *ip = packet->l3;

	return (void *)(ip + 1) > packet->end ? NULL : ip;
}

/* Bytes of the frame from :at on. */
static __always_inline u32 bytes_from(const struct packet *packet, const void *at)
{
#if FRAGS
	return (u32)(packet->end - at) + packet->beyond;
#else
	return packet->end - at;
#endif
}

/* All that is looked at has to lie in the first buffer; else it is not understood. */
static __always_inline bool is_cut_short(const struct packet *packet,
					 const void *data)
{
#if FRAGS
	return packet->beyond && packet->end - data < FIRST_BUFFER_MIN;
#else
	return false;
#endif
}

/*
 * Whether the IP packet reaches there: what lies behind it in the frame is the
 * link's padding. The first half is for the verifier.
 */
static __always_inline bool reaches(const struct packet *packet, const void *to)
{
	return to <= packet->end && (u32)(to - packet->l3) <= packet->bytes;
}

/* Whether a router may send it on in fragments; never over IPv6. */
static __always_inline bool may_be_cut(const struct packet *packet)
{
	struct iphdr *ip = header_v4(packet);

	return !packet->v6 && ip &&
	       !(ip->frag_off & bpf_htons(IP_NO_FRAGMENTS));
}

static __always_inline void map_v4(__be32 *mapped, __be32 address, u32 zero)
{
	u64_alias *halves = (u64_alias *)mapped;	/* as parse_ipv6() copies them */

	halves[0] = zero;
	halves[1] = (u64)address << 32 | (V4_MAPPED_PREFIX + zero);
}

/* In halves of which the verifier knows nothing, as of those of map_v4(). */
static __always_inline void copy_v6(__be32 *to, const struct in6_addr *from)
{
	const __be32 *words = from->in6_u.u6_addr32;
	u64_alias *halves = (u64_alias *)to;

	halves[0] = (u64)words[1] << 32 | words[0];
	halves[1] = (u64)words[3] << 32 | words[2];
}

static __always_inline bool is_mapped(const __be32 *address)
{
	return !address[0] && !address[1] && address[2] == V4_MAPPED_PREFIX;
}

/*
 * No host has it beyond its own link: this network, loopback, multicast and
 * reserved (RFC 6890); for IPv6 also link-local.
 */
static __always_inline bool is_martian(const __be32 *address)
{
	u32 top = bpf_ntohl(address[is_mapped(address) ? V4_WORD : 0]);

	if (is_mapped(address))
		return !(top >> 24) || top >> 24 == 127 || top >> 24 >= 224;
	return top >> 24 == 0xff || top >> 22 == 0xfe80 >> 6 ||
	       (!address[0] && !address[1] && !address[2]);
}

/* A SYN that opens a connection. */
static __always_inline bool opens(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* The same pointer, of which the verifier knows no more than the mask says. */
static __always_inline void *forgotten(const struct packet *packet, void *at,
				       u32 mask)
{
	void *data = packet->eth;
	u64 offset = at - data;

	asm volatile("" : "+r"(offset)); /* or the compiler sees through it */
	return data + (offset & mask);
}

static __always_inline enum parsed parse_tcp(struct packet *packet,
					     const struct cursor *cursor)
{
	struct tcphdr *tcp = cursor->at;

	if ((void *)(tcp + 1) > packet->end || cursor->bytes < sizeof(*tcp) ||
	    tcp->doff < TCP_WORDS_MIN || tcp->doff * 4U > cursor->bytes)
		return PARSED_BROKEN;
	packet->check_at = __builtin_offsetof(struct tcphdr, check);
	packet->tcp_flags = ((u8 *)tcp)[TCP_FLAGS_BYTE];
	packet->payload = cursor->bytes - tcp->doff * 4U;
	packet->payload_at = (u8 *)tcp - (u8 *)packet->eth + tcp->doff * 4U;
	packet->sequence = bpf_ntohl(tcp->seq);
	packet->acknowledged = bpf_ntohl(tcp->ack_seq);
	return PARSED;
}

static __always_inline enum parsed parse_udp(struct packet *packet,
					     const struct cursor *cursor)
{
	struct udphdr *udp = cursor->at;

	if ((void *)(udp + 1) > packet->end || cursor->bytes < sizeof(*udp) ||
	    bpf_ntohs(udp->len) < sizeof(*udp) ||
	    (bpf_ntohs(udp->len) > cursor->bytes && !packet->fragmented))
		return PARSED_BROKEN;
	/* RFC 8200 section 8.1: over IPv6 the checksum is no option. */
	if (packet->v6 && !udp->check)
		return PARSED_BROKEN;
	packet->check_at = __builtin_offsetof(struct udphdr, check);
	packet->tcp_flags = packet->zero;
	packet->payload = packet->zero;
	packet->payload_at = packet->zero;
	packet->sequence = packet->zero;
	packet->acknowledged = packet->zero;
	return PARSED;
}

static __always_inline enum parsed parse_l4(struct packet *packet,
					    struct cursor *cursor)
{
	enum parsed found = PARSED_OTHER_PROTOCOL;

	if (packet->protocol == IPPROTO_TCP)
		found = parse_tcp(packet, cursor);
	else if (packet->protocol == IPPROTO_UDP)
		found = parse_udp(packet, cursor);
	if (found != PARSED)
		return found;
	packet->ports = forgotten(packet, cursor->at, L4_OFFSET_MASK);
	packet->check = cursor->at + (packet->check_at & CHECK_AT_MASK);
	if ((void *)(packet->ports + 1) > packet->end ||
	    (void *)(packet->check + 1) > packet->end)
		return PARSED_BROKEN;	/* never: for the verifier */
	packet->source_port = packet->ports->source;
	packet->destination_port = packet->ports->destination;
	return PARSED;
}

/* PARSED: the cursor is at what the packet carries. */
static __always_inline enum parsed parse_ipv4(struct packet *packet,
					      struct cursor *cursor)
{
	struct iphdr *ip = cursor->at;
	u32 header;

	if ((void *)(ip + 1) > packet->end)
		return PARSED_NOT_IP;
	packet->v6 = false;
	packet->ttl = ip->ttl;
	map_v4(packet->source, ip->saddr, packet->zero);
	map_v4(packet->destination, ip->daddr, packet->zero);
	packet->protocol = ip->protocol;
	packet->bytes = bpf_ntohs(ip->tot_len);
	header = ip->ihl * 4U;
	if (ip->version != 4 || ip->ihl < IP_WORDS_MIN ||
	    packet->bytes < header ||
	    packet->bytes > bytes_from(packet, cursor->at))
		return PARSED_BROKEN;
	packet->fragmented = packet->zero;
	if (ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS | IP_OFFSET)) {
		packet->fragmented = 1 + packet->zero;
		packet->fragment_id = ip->id;
		if (ip->frag_off & bpf_htons(IP_OFFSET))
			return PARSED_FRAGMENT;
	}
	cursor->at += header;
	cursor->bytes = packet->bytes - header;
	return ip->protocol == IPPROTO_ICMP ? PARSED_ICMP : PARSED;
}

/* False: a later one. A packet in one piece may have the header too (RFC 6946). */
static __always_inline bool parse_fragment(struct packet *packet,
					   const struct fragment_header *fragment)
{
	packet->fragment_id = fragment->id;
	if (fragment->offset & (FRAGMENT_OFFSET | FRAGMENT_MORE))
		packet->fragmented = 1 + packet->zero;
	return !(fragment->offset & FRAGMENT_OFFSET);
}

/* Past the headers that a router need not understand. */
static __always_inline enum parsed parse_extensions(struct packet *packet,
						    struct cursor *cursor)
{
	struct ipv6_rt_hdr *extension;
	u32 length;

	packet->fragmented = packet->zero;
	for (u32 i = 0; i <= EXTENSIONS_MAX; i++) {
		switch (packet->protocol) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_DSTOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_FRAGMENT:
			break;
		case IPPROTO_ICMPV6:
			return PARSED_ICMP;
		default:
			return PARSED;
		}
		extension = cursor->at;
		if (i == EXTENSIONS_MAX || cursor->bytes < FRAGMENT_BYTES ||
		    cursor->at + FRAGMENT_BYTES > packet->end)
			return PARSED_BROKEN;
		length = (extension->hdrlen + 1) * EXTENSION_UNIT;
		if (packet->protocol == IPPROTO_FRAGMENT) {
			length = FRAGMENT_BYTES;
			if (!parse_fragment(packet, cursor->at))
				return PARSED_FRAGMENT;
		}
		if (length > cursor->bytes)
			return PARSED_BROKEN;
		/* Another address than the header's is where it ends. */
		if (packet->protocol == IPPROTO_ROUTING &&
		    extension->segments_left)
			return PARSED_OTHER_PROTOCOL;
		packet->protocol = extension->nexthdr;
		cursor->at += length;
		cursor->bytes -= length;
	}
	return PARSED_BROKEN;
}

static __always_inline enum parsed parse_ipv6(struct packet *packet,
					      struct cursor *cursor)
{
	struct ipv6hdr *ip = cursor->at;

	if ((void *)(ip + 1) > packet->end)
		return PARSED_NOT_IP;
	packet->v6 = true;
	packet->ttl = ip->hop_limit;
	copy_v6(packet->source, &ip->saddr);
	copy_v6(packet->destination, &ip->daddr);
	/* Never on the wire (RFC 4942 section 2.2), and they stand for IPv4. */
	if (is_mapped(packet->source) || is_mapped(packet->destination))
		return PARSED_OTHER;
	packet->protocol = ip->nexthdr;
	cursor->at = ip + 1;
	cursor->bytes = bpf_ntohs(ip->payload_len);
	packet->bytes = sizeof(*ip) + cursor->bytes;
	if (ip->version != 6 ||
	    cursor->bytes > bytes_from(packet, cursor->at))
		return PARSED_BROKEN;
	return parse_extensions(packet, cursor);
}

static __always_inline bool is_tag(__be16 protocol)
{
	return protocol == bpf_htons(ETH_P_8021Q) ||
	       protocol == bpf_htons(ETH_P_8021AD);
}

/* Returns the EtherType behind the tags; the cursor is behind that. */
static __always_inline __be16 parse_tags(struct packet *packet,
					 struct cursor *cursor)
{
	__be16 protocol = packet->eth->h_proto;
	struct tag *tag;

	packet->tags = packet->zero;
#pragma unroll
	for (u32 i = 0; i < TAGS_MAX; i++) {
		packet->vlan[i] = packet->zero;
		if (!is_tag(protocol))
			continue;
		tag = cursor->at - sizeof(protocol);
		if ((void *)(tag + 1) + sizeof(protocol) > packet->end)
			return 0;
		packet->vlan[i] = tag->control & VID_MASK;
		packet->tags = i + 1 + packet->zero;
		protocol = (tag + 1)->protocol;
		cursor->at = (void *)(tag + 1) + sizeof(protocol);
	}
	return protocol;
}

static __always_inline enum parsed parse(struct packet *packet,
					 struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct cursor cursor;
	enum parsed found;
	__be16 protocol;

	packet->end = end;
#if FRAGS
	packet->beyond = bpf_xdp_get_buff_len(ctx) - (end - data);
#endif
	if ((void *)(eth + 1) > end)
		return PARSED_NOT_IP;
	packet->eth = eth;
	/* As the kernel: what goes to many is not forwarded, or each would. */
	if ((eth->h_dest[0] & 1) || is_cut_short(packet, data))
		return PARSED_OTHER;
	cursor.at = eth + 1;
	protocol = parse_tags(packet, &cursor);
	cursor.at = forgotten(packet, cursor.at, L3_OFFSET_MASK);
	packet->l3 = cursor.at;
	if (protocol == bpf_htons(ETH_P_IP))
		found = parse_ipv4(packet, &cursor);
	else if (protocol == bpf_htons(ETH_P_IPV6))
		found = parse_ipv6(packet, &cursor);
	else
		return is_tag(protocol) ? PARSED_VLAN : PARSED_NOT_IP;
	if (found != PARSED && found != PARSED_ICMP && found != PARSED_FRAGMENT)
		return found;
	/*
	 * Whichever way led here, the packet's path is one story to the
	 * verifier.
	 */
	packet->l3 = forgotten(packet, packet->l3, L3_OFFSET_MASK);
	cursor.at = forgotten(packet, cursor.at, L4_OFFSET_MASK);
	packet->l4 = cursor.at;
	return found == PARSED ? parse_l4(packet, &cursor) : found;
}

#endif
