/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Feeds the program under test by tail call: every run restores the frame and
 * gives it the next flow's source, for a test run repeats on one frame. Beside
 * it the two yardsticks: what the harness itself costs, and what one line of a
 * table that no cache holds costs on top.
 *
 * FRAME_BYTES, TABLE_LINES (a power of two) come as -D; `plan` is set by the
 * runner.
 */
#include <linux/types.h>
#include <linux/if_ether.h>
#include <linux/ip.h>

#define PORTS_BITS 12
#define FIRST_PORT 1024
#define CLIENT_NET 0x0a000000U
#define PORTS_OFFSET (ETH_HLEN + sizeof(struct iphdr))

struct frame {
	u8 bytes[FRAME_BYTES];
};

struct plan {
	u32 random;	/* xorshift32's state, never 0 */
	u32 flow_mask;	/* flows - 1 */
	u32 next;	/* with `in_turn`: the flow that follows */
	u32 in_turn;	/* flows one after the other, else at random */
};

struct line {
	u64 words[8];
};

BPF_TABLE("prog", u32, u32, target, 1);
BPF_ARRAY(template, struct frame, 1);
BPF_F_TABLE("array", u32, struct plan, plan, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct line, lines, TABLE_LINES, BPF_F_MMAPABLE);

int feed(struct xdp_md *ctx)
{
	u32 zero = 0, x, flow;
	struct frame *frame = template.lookup(&zero);
	struct plan *now = plan.lookup(&zero);
	long bytes = ctx->data_end - ctx->data;
	void *data, *end;
	struct iphdr *ip;
	__be16 *port;

	if (bytes != FRAME_BYTES &&
	    bpf_xdp_adjust_head(ctx, (int)(bytes - FRAME_BYTES)))
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
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
	ip = data + ETH_HLEN;
	port = data + PORTS_OFFSET;
	ip->saddr = bpf_htonl(CLIENT_NET | flow >> PORTS_BITS);
	*port = bpf_htons(FIRST_PORT + (flow & ((1 << PORTS_BITS) - 1)));
	target.call(ctx, 0);
	return XDP_ABORTED;
}

int empty(struct xdp_md *ctx)
{
	return XDP_TX;
}

int cold(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	__be16 *ports = data + PORTS_OFFSET;
	struct line *line;
	u64 hash;
	u32 index;

	if ((void *)(ports + 2) > end)
		return XDP_PASS;
	hash = (u64)ip->saddr << 32 | (u32)ports[0] << 16 | ports[1];
	hash = (hash ^ ip->daddr) * 0x9fb21c651e98df25ULL;
	hash ^= hash >> 35;
	hash *= 0x9fb21c651e98df25ULL;
	hash ^= hash >> 32;
	index = hash & (TABLE_LINES - 1);
	line = lines.lookup(&index);
	if (!line)
		return XDP_ABORTED;
	ip->daddr = line->words[hash >> 61];
	return XDP_TX;
}
