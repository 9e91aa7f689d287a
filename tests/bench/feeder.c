/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Feeds the program under test by tail call: every run restores the frame and
 * gives it the next flow's client, for a test run repeats on one frame. Beside
 * it the two yardsticks: what the harness itself costs, and what one line of a
 * table that no cache holds costs on top.
 *
 * FRAME_BYTES, TABLE_LINES (a power of two) come as -D; `plan` is set by the
 * runner.
 */
#include <linux/types.h>
#include <linux/if_ether.h>

#define PORTS_BITS 12
#define FIRST_PORT 1024
#define OFFSET_MASK 63
#define COLD_WORDS 11		/* to the ports of an IPv6 packet */

struct frame {
	u8 bytes[FRAME_BYTES];
};

struct plan {
	u32 random;	/* xorshift32's state, never 0 */
	u32 flow_mask;	/* flows - 1 */
	u32 next;	/* with `in_turn`: the flow that follows */
	u32 in_turn;	/* flows one after the other, else at random */
	u32 address;	/* offset of the last four bytes of the client's address */
	u32 port;	/* offset of the client's port */
	u32 net;	/* those four bytes of the first client, as a number */
	u32 pad;
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
	__be32 *address;
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
	address = data + (now->address & OFFSET_MASK);
	port = data + (now->port & OFFSET_MASK);
	if ((void *)(address + 1) > end || (void *)(port + 1) > end)
		return XDP_ABORTED;
	*address = bpf_htonl(now->net | flow >> PORTS_BITS);
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
	u32 *words = data + ETH_HLEN;
	struct line *line;
	u64 hash;
	u32 index;

	if ((void *)(words + COLD_WORDS) > end)
		return XDP_PASS;
	/* addresses and ports of either version, and what lies in their place */
	hash = ((u64)words[4] << 32 | words[3]) * 0x9fb21c651e98df25ULL;
	hash ^= ((u64)words[9] << 32 | words[5]) * 0xd6e8feb86659fd93ULL;
	hash ^= words[10] * 0x9e3779b97f4a7c15ULL;
	hash ^= hash >> 35;
	hash *= 0x9fb21c651e98df25ULL;
	hash ^= hash >> 32;
	index = hash & (TABLE_LINES - 1);
	line = lines.lookup(&index);
	if (!line)
		return XDP_ABORTED;
	words[4] = line->words[hash >> 61];
	return XDP_TX;
}
