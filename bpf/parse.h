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
#include <linux/tcp.h>
#include <linux/udp.h>

#include "structs.h"

#define IP_MORE_FRAGMENTS 0x2000
#define IP_OFFSET 0x1fff
#define IP_WORDS_MIN 5
#define TCP_WORDS_MIN 5

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_FLAGS_BYTE 13

enum parsed {
	PARSED,			/* everything in struct packet is set */
	PARSED_NOT_IP,		/* nothing is set */
	PARSED_GROUP,		/* a link-layer broadcast or multicast */
	PARSED_IPV6,
	PARSED_VLAN,
	PARSED_FRAGMENT,	/* addresses are set, from here on */
	PARSED_ICMP,
	PARSED_OTHER_PROTOCOL,
	PARSED_BROKEN,
};

struct packet {
	void *end;
	struct ethhdr *eth;
	struct iphdr *ip;
	union {
		struct tcphdr *tcp;
		struct udphdr *udp;
	};
	__be32 source[ADDRESS_WORDS];
	__be32 destination[ADDRESS_WORDS];
	__be16 source_port;
	__be16 destination_port;
	u16 bytes;		/* of the IP packet */
	u8 protocol;
	u8 tcp_flags;		/* TCP_*; 0 for UDP */
	u32 out_ifindex;	/* where it is redirected to */
};

static __always_inline void map_v4(__be32 *mapped, __be32 address)
{
	mapped[0] = 0;
	mapped[1] = 0;
	mapped[2] = V4_MAPPED_PREFIX;
	mapped[V4_WORD] = address;
}

/* A SYN that opens a connection. */
static __always_inline bool opens(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static __always_inline enum parsed parse_tcp(struct packet *packet, void *at,
					     u32 bytes)
{
	struct tcphdr *tcp = at;

	if ((void *)(tcp + 1) > packet->end || bytes < sizeof(*tcp) ||
	    tcp->doff < TCP_WORDS_MIN || tcp->doff * 4U > bytes)
		return PARSED_BROKEN;
	packet->tcp = tcp;
	packet->source_port = tcp->source;
	packet->destination_port = tcp->dest;
	packet->tcp_flags = ((u8 *)tcp)[TCP_FLAGS_BYTE];
	return PARSED;
}

static __always_inline enum parsed parse_udp(struct packet *packet, void *at,
					     u32 bytes)
{
	struct udphdr *udp = at;

	if ((void *)(udp + 1) > packet->end || bytes < sizeof(*udp) ||
	    bpf_ntohs(udp->len) < sizeof(*udp) || bpf_ntohs(udp->len) > bytes)
		return PARSED_BROKEN;
	packet->udp = udp;
	packet->source_port = udp->source;
	packet->destination_port = udp->dest;
	packet->tcp_flags = 0;
	return PARSED;
}

static __always_inline enum parsed parse_ipv4(struct packet *packet, void *at)
{
	struct iphdr *ip = at;
	u32 header, bytes;
	void *next;

	if ((void *)(ip + 1) > packet->end)
		return PARSED_NOT_IP;
	packet->ip = ip;
	map_v4(packet->source, ip->saddr);
	map_v4(packet->destination, ip->daddr);
	packet->protocol = ip->protocol;
	bytes = bpf_ntohs(ip->tot_len);
	packet->bytes = bytes;
	header = ip->ihl * 4U;
	if (ip->version != 4 || ip->ihl < IP_WORDS_MIN || bytes < header ||
	    bytes > (u32)(packet->end - at))
		return PARSED_BROKEN;
	if (ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS | IP_OFFSET))
		return PARSED_FRAGMENT;
	next = at + header;
	if (ip->protocol == IPPROTO_TCP)
		return parse_tcp(packet, next, bytes - header);
	if (ip->protocol == IPPROTO_UDP)
		return parse_udp(packet, next, bytes - header);
	if (ip->protocol == IPPROTO_ICMP)
		return PARSED_ICMP;
	return PARSED_OTHER_PROTOCOL;
}

static __always_inline enum parsed parse(struct packet *packet, void *data,
					 void *end)
{
	struct ethhdr *eth = data;

	packet->end = end;
	if ((void *)(eth + 1) > end)
		return PARSED_NOT_IP;
	packet->eth = eth;
	/* As the kernel: what goes to many is not forwarded, or each would. */
	if (eth->h_dest[0] & 1)
		return PARSED_GROUP;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return parse_ipv4(packet, eth + 1);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return PARSED_IPV6;
	if (eth->h_proto == bpf_htons(ETH_P_8021Q) ||
	    eth->h_proto == bpf_htons(ETH_P_8021AD))
		return PARSED_VLAN;
	return PARSED_NOT_IP;
}

#endif
