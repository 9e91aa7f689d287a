/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Both ends of the frames' way through an access point. offer() makes the
 * frames of many clients, in a live test run. arrive() sits at clients and
 * endpoints: it counts what comes, and answers what opens a flow, so that
 * whoever keeps state knows both directions. Beside them what the access point
 * itself may need: pass() and relay().
 *
 * FRAME_BYTES, CLIENT_NET (a /16), VIP_PORT and ENDPOINT_PORT come as -D;
 * `plan`, `template` and `relay_to` are set by the runner.
 */
#include <linux/types.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#define PORTS_BITS 12
#define FIRST_PORT 1024
#define MAX_CPUS 1024
#define OPENING 1		/* first byte of a UDP payload that wants an answer */
#define TCP_FLAGS_OFFSET 12	/* with the header's length, 16 bits */
#define TCP_ACK 0x10

/* What arrived; the runner knows them by their order. */
enum kind {
	KIND_FRAME,	/* of a flow, at its endpoint */
	KIND_OPENING,	/* opens a flow, at its endpoint */
	KIND_ANSWER,	/* to that, at the client */
	KIND_STRANGE,	/* not translated */
	KINDS = 8,
};

struct frame {
	u8 bytes[FRAME_BYTES];
};

struct plan {
	u32 random;	/* xorshift32's state, never 0 */
	u32 flow_mask;	/* flows - 1 */
	u32 next;	/* with `in_turn`: the flow that follows */
	u32 in_turn;	/* flows one after the other, else at random */
	u32 verdict;	/* XDP_TX, or XDP_DROP: made and not sent */
	u32 pad;
};

struct arrived {
	u64 count[KINDS];
};

BPF_ARRAY(template, struct frame, 1);
BPF_F_TABLE("array", u32, struct plan, plan, 1, BPF_F_MMAPABLE);
/* A line per CPU. */
BPF_F_TABLE("array", u32, struct arrived, arrived, MAX_CPUS, BPF_F_MMAPABLE);
/* Destination -> interface that its frames are handed on to. */
BPF_HASH(relay_to, u32, u32, 64);

/* A checksum's field, after words that were zero became `more` in all. */
static __always_inline void add_to_sum(__sum16 *check, u32 more)
{
	u32 sum = (u16)~*check + more;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	*check = ~sum;
}

/*
 * The frame is what became of it in an earlier run, so it is written anew. In
 * the template the source's port and the lower half of its address are zero.
 */
int offer(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 zero = 0, x, flow;
	struct frame *frame = template.lookup(&zero);
	struct plan *now = plan.lookup(&zero);
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__be16 host, port;

	if (!frame || !now || data + FRAME_BYTES > end)
		return XDP_ABORTED;
	__builtin_memcpy(data, frame, FRAME_BYTES);
	if (now->in_turn) {
		flow = now->next++ & now->flow_mask;
	} else {
		x = now->random;
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		now->random = x;
		flow = x & now->flow_mask;
	}
	host = bpf_htons(1 + (flow >> PORTS_BITS));
	port = bpf_htons(FIRST_PORT + (flow & ((1 << PORTS_BITS) - 1)));
	ip->saddr |= (u32)host << 16;
	tcp->source = port;
	add_to_sum(&ip->check, host);
	if (ip->protocol == IPPROTO_TCP)
		add_to_sum(&tcp->check, (u32)host + port);
	else
		add_to_sum(&udp->check, (u32)host + port);
	return now->verdict;
}

/* The answer leaves where the question came in; the sums stay what they are. */
static __always_inline int send_back(struct xdp_md *ctx, struct ethhdr *eth,
				     struct iphdr *ip, __be16 *ports)
{
	__be32 address = ip->saddr;
	__be16 port = ports[0];
	u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, mac, ETH_ALEN);
	ip->saddr = ip->daddr;
	ip->daddr = address;
	ports[0] = ports[1];
	ports[1] = port;
	/* XDP_TX would wait in a veth whose peer has no program. */
	return bpf_redirect(ctx->ingress_ifindex, 0);
}

/* SYN to SYN-ACK, whose own sequence number is the SYN's: 0. */
static __always_inline void accept(struct tcphdr *tcp)
{
	__be16 *flags = (void *)tcp + TCP_FLAGS_OFFSET;
	__be32 acknowledged = bpf_htonl(bpf_ntohl(tcp->seq) + 1);

	*flags |= bpf_htons(TCP_ACK);
	tcp->ack_seq = acknowledged;
	add_to_sum(&tcp->check, bpf_htons(TCP_ACK) + (acknowledged & 0xffff) +
				(acknowledged >> 16));
}

static __always_inline bool is_client(__be32 address)
{
	return bpf_ntohl(address) >> 16 == CLIENT_NET >> 16;
}

int arrive(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 cpu = bpf_get_smp_processor_id();
	struct arrived *seen = arrived.lookup(&cpu);
	struct ethhdr *eth = data;
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__be16 *ports = (void *)(ip + 1);
	u8 *payload = (void *)(udp + 1);
	enum kind kind;
	bool opens;

	if (!seen || (void *)(tcp + 1) > end ||
	    eth->h_proto != bpf_htons(ETH_P_IP) ||
	    (!is_client(ip->saddr) && !is_client(ip->daddr)))
		return XDP_PASS;	/* neighbours, health checks */
	opens = ip->protocol == IPPROTO_TCP ? tcp->syn && !tcp->ack :
					      *payload == OPENING;
	if (ports[1] == bpf_htons(ENDPOINT_PORT))
		kind = opens ? KIND_OPENING : KIND_FRAME;
	else
		kind = ports[0] == bpf_htons(VIP_PORT) ? KIND_ANSWER :
							  KIND_STRANGE;
	seen->count[kind]++;
	if (kind != KIND_OPENING)
		return XDP_DROP;
	if (ip->protocol == IPPROTO_TCP) {
		accept(tcp);
	} else {
		*payload = 0;
		add_to_sum(&udp->check, (u16)~bpf_htons(OPENING << 8));
	}
	return send_back(ctx, eth, ip, ports);
}

/* A veth takes redirected frames, and polls, once it has a program. */
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* The least that an access point can do. */
int relay(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + ETH_HLEN;
	u32 destination, *ifindex;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	destination = ip->daddr;
	ifindex = relay_to.lookup(&destination);
	return ifindex ? bpf_redirect(*ifindex, 0) : XDP_PASS;
}
