/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Frames as they come and as they leave, in the build that `penumbra capture` puts
 * in the steering one's place for the time. In every other build these are nothing.
 *
 * A part of steer.c, for it looks things up in maps.
 */

#define ETH_PROTOCOL_AT 12
#define V4_SOURCE_AT 12		/* in the IP header; the destination follows */
#define V6_SOURCE_AT 8
#define NO_WAKEUP 1		/* BPF_RB_NO_WAKEUP: who reads looks by itself */

#if CAPTURE

/*
 * Looked up each time: an address kept from the first time on may be none, and
 * the verifier would go down every path of the program for either.
 */
static __always_inline void capture_note(struct here *here, enum note kind,
					 u32 a)
{
	struct capture_cpu *own = capture_cpus.lookup(&here->cpu);

	if (!own)
		return;
	if (kind == NOTE_service)
		own->service = a;
	if (kind == NOTE_endpoint || kind == NOTE_sender)
		own->endpoint = ref_index(a);
	if (kind == NOTE_reason)
		own->reason = a;
}

static __always_inline void copy_frame(struct xdp_md *ctx,
				       struct captured_frame *frame, u32 snap)
{
	u64 length = bpf_xdp_get_buff_len(ctx), bytes = length;

	if (bytes > snap)
		bytes = snap;
	/*
	 * It is 1 to SNAP_MAX already, but 6.1's verifier loses a lower bound on
	 * the way, and there none may be empty.
	 */
	asm volatile("" : "+r"(bytes));
	bytes = ((bytes - 1) & (SNAP_MAX - 1)) + 1;
	if (bpf_xdp_load_bytes(ctx, 0, frame->data, bytes))
		bytes = 0;
	frame->head.time_ns = bpf_ktime_get_ns();
	frame->head.length = length;
	frame->head.captured = bytes;
}

static __always_inline bool in_client(const struct capturing *wanted,
				      const __be32 *address)
{
	__be32 differs = 0;

#pragma unroll
	for (u32 i = 0; i < ADDRESS_WORDS; i++)
		differs |= (address[i] ^ wanted->client[i]) & wanted->mask[i];
	return !differs;
}

/* Whether the packet is from the client or to it, by its outer addresses. */
static __always_inline bool of_client(const struct capturing *wanted,
				      const struct captured_frame *frame)
{
	const u8 *at = frame->data + ETH_PROTOCOL_AT;
	__be32 ends[2][ADDRESS_WORDS] = {};
	__be16 protocol;

	if (!(wanted->mask[0] | wanted->mask[1] | wanted->mask[2] |
	      wanted->mask[3]))
		return true;
#pragma unroll
	for (u32 i = 0; i < TAGS_MAX; i++) {
		__builtin_memcpy(&protocol, at, sizeof(protocol));
		if (is_tag(protocol))
			at += sizeof(struct tag);
	}
	__builtin_memcpy(&protocol, at, sizeof(protocol));
	at += sizeof(protocol);
	if (protocol == bpf_htons(ETH_P_IPV6)) {
		__builtin_memcpy(ends, at + V6_SOURCE_AT, sizeof(ends));
	} else if (protocol == bpf_htons(ETH_P_IP)) {
		at += V4_SOURCE_AT;
		ends[0][2] = ends[1][2] = V4_MAPPED_PREFIX;
		__builtin_memcpy(&ends[0][V4_WORD], at, sizeof(__be32));
		__builtin_memcpy(&ends[1][V4_WORD], at + sizeof(__be32),
				 sizeof(__be32));
	} else {
		return false;
	}
	return in_client(wanted, ends[0]) || in_client(wanted, ends[1]);
}

static __always_inline bool is_wanted(const struct capturing *wanted,
				      const struct capture_cpu *own)
{
	if (!(wanted->reasons >> own->reason % REASON_SLOTS & 1))
		return false;
	if (wanted->service != CAPTURE_ANY && wanted->service != own->service)
		return false;
	if (wanted->endpoint != CAPTURE_ANY && wanted->endpoint != own->endpoint)
		return false;
	return of_client(wanted, &own->came);
}

static __always_inline void hand_over(struct here *here, struct capture_cpu *own,
				      struct captured_frame *frame, int verdict,
				      bool leaves)
{
	u64 bytes = frame->head.captured;

	frame->head.number = own->number;
	frame->head.cpu = here->cpu;
	frame->head.ifindex = here->ctx->ingress_ifindex;
	frame->head.service = own->service;
	frame->head.endpoint = own->endpoint;
	frame->head.leaves = leaves;
	frame->head.verdict = verdict;
	frame->head.reason = own->reason;
	asm volatile("" : "+r"(bytes));
	if (bytes > SNAP_MAX ||
	    captured.ringbuf_output(frame, sizeof(frame->head) + bytes, NO_WAKEUP))
		own->lost++;
}

#endif

/* Before anything is looked at. */
static __always_inline void capture_came(struct here *here)
{
#if CAPTURE
	struct capture_cpu *own = capture_cpus.lookup(&here->cpu);
	struct capturing *wanted;
	u32 zero = 0;

	wanted = capture_wanted.lookup(&zero);
	if (!own || !wanted)
		return;
	own->on = (s32)(wanted->until_tick - here->tick) > 0;
	if (!own->on) {
		own->unseen++;
		return;
	}
	own->service = CAPTURE_ANY;
	own->endpoint = 0;
	copy_frame(here->ctx, &own->came, wanted->snap);
#endif
}

/* When all is decided and written. */
static __always_inline void capture_leaves(struct here *here, int verdict)
{
#if CAPTURE
	struct capture_cpu *own = capture_cpus.lookup(&here->cpu);
	struct capturing *wanted;
	u32 zero = 0;

	wanted = capture_wanted.lookup(&zero);
	if (!own || !wanted || !own->on || !is_wanted(wanted, own))
		return;
	own->number++;
	hand_over(here, own, &own->came, verdict, false);
	if (verdict == XDP_DROP || verdict == XDP_ABORTED)
		return;
	copy_frame(here->ctx, &own->leaves, wanted->snap);
	hand_over(here, own, &own->leaves, verdict, true);
#endif
}
