/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Requests on a TCP flow, told from payload alone: the client's first after an
 * answer starts one, the endpoint's first after that answers it. Exact for one
 * request at a time; the README says where it is not. Knows no map.
 *
 * With FLOW_REQUEST the stamp of struct flow.life is what follows; without, from
 * the handshake on, the sequence number that the client's next byte has to have,
 * or one less: then its answer may be mistaken, and it is not timed.
 */
#ifndef PENUMBRA_REQUEST_H
#define PENUMBRA_REQUEST_H

#include "flow.h"
#include "hash.h"
#include "parse.h"
#include "store.h"

/* RFC 8446 section 5: {type:8 | version:16 | bytes:16}, then so many bytes. */
#define TLS_CHANGE_CIPHER 20
#define TLS_APPLICATION_DATA 23
#define TLS_HEADER 5
#define TLS_CHANGE_CIPHER_BYTES 6	/* the whole record */
#define TLS_ALERT_BYTES 19		/* of TLS 1.3: 2, the type, a tag of 16 */

/* RFC 9110 section 15.2.1; with an answer behind it, it would be longer. */
#define HTTP_WORD bpf_htonl(0x48545450)		/* "HTTP" */
#define HTTP_STATUS_AT 8
#define HTTP_CONTINUE bpf_htonl(0x20313030)	/* " 100" */
#define HTTP_CONTINUE_MOST 41

#define SENT_AGAIN_MOST 65536U		/* bytes; more, and the mark is wrong */

/*
 * The stamp of a timed request counts units of 2^10 ns, so that it wraps with
 * every 64th tick and its top bits name the tick. Which 64 of them it was, the
 * tick of last seen tells, as long as that is not let run on: past LATE_TICKS
 * the stamp gives way to REQUEST_LATE.
 */
#define REQUEST_UNIT_SHIFT 10
#define STAMP_TICK (TICK_SHIFT - REQUEST_UNIT_SHIFT)
#define WRAP_TICKS (1U << (LIFE_FLAGS - STAMP_TICK))
#define SKEW_TICKS 4		/* by which CPUs' and clocks' ticks may differ */
#define LATE_TICKS ((s32)(WRAP_TICKS - SKEW_TICKS))	/* 16.1 s */
#define LATE_TRIES 2		/* against other CPUs, who would say the same */
#define REQUEST_UNTIMED 0U
#define REQUEST_LATE 1U
#define REQUEST_FIRST_UNIT 2U
#define LATE_US LIFE_STAMP	/* the histogram's last bucket, 16.25 s and more */

/* Read anew where it is asked: kept, it would be two stories to the verifier. */
static __always_inline bool watches(const struct service *service)
{
	return service->protocol == IPPROTO_TCP &&
	       (*(volatile u8 *)&service->flags & SERVICE_REQUESTS);
}

/* ---- what packets carry -------------------------------------------------- */

/*
 * NULL: it has not so many bytes. The frame is asked of the context anew: kept
 * until here, pointers into it would tell the verifier every way that led here.
 */
static __always_inline const u8 *payload_of(const struct xdp_md *ctx,
					    const struct packet *packet,
					    u32 bytes)
{
	const void *end = (void *)(long)ctx->data_end;
	const u8 *payload = (void *)(long)ctx->data;

	payload += packet->payload_at & L4_OFFSET_MASK;
	if (packet->payload < bytes || (void *)(payload + bytes) > end)
		return NULL;
	return payload;
}

/*
 * From TLS 1.3 on alerts look like data from without; but they are shorter than
 * anything that is worth being called a request.
 */
static __always_inline bool is_application_data(const struct xdp_md *ctx,
						const struct packet *packet)
{
	const u8 *record = payload_of(ctx, packet, TLS_HEADER);

	return record && record[0] == TLS_APPLICATION_DATA &&
	       (record[3] << 8 | record[4]) > TLS_ALERT_BYTES;
}

/*
 * The client's last message of a TLS 1.3 handshake. What it sends next may be met
 * by a session ticket, which looks like an answer (RFC 8446 section 4.6.1).
 */
static __always_inline bool is_tls_finished(const struct xdp_md *ctx,
					    const struct packet *packet,
					    u8 flags)
{
	const u8 *record;

	if (!(flags & SERVICE_REQUESTS_TLS))
		return false;
	record = payload_of(ctx, packet, TLS_CHANGE_CIPHER_BYTES + 1);
	return record && record[0] == TLS_CHANGE_CIPHER &&
	       record[TLS_CHANGE_CIPHER_BYTES] == TLS_APPLICATION_DATA;
}

/* "100 Continue", and nothing else: the answer is still to come. */
static __always_inline bool is_continue(const struct xdp_md *ctx,
					const struct packet *packet)
{
	const u8 *status;

	if (packet->payload > HTTP_CONTINUE_MOST)
		return false;
	status = payload_of(ctx, packet, HTTP_STATUS_AT + sizeof(u32));
	return status && *(const u32 *)status == HTTP_WORD &&
	       *(const u32 *)(status + HTTP_STATUS_AT) == HTTP_CONTINUE;
}

/* Bytes of a request. */
static __always_inline bool asks(const struct xdp_md *ctx,
				 const struct packet *packet, u8 flags)
{
	return packet->payload && (!(flags & SERVICE_REQUESTS_TLS) ||
				   is_application_data(ctx, packet));
}

/* Bytes of an answer. */
static __always_inline bool answers(const struct xdp_md *ctx,
				    const struct packet *packet, u8 flags)
{
	return packet->payload &&
	       (flags & SERVICE_REQUESTS_TLS ? is_application_data(ctx, packet) :
					       !is_continue(ctx, packet));
}

/*
 * Whether the endpoint has acknowledged all of its bytes; so many of them, and
 * :due is no mark that was set for this flow's requests.
 */
static __always_inline bool sent_again(const struct packet *packet, u32 due,
				       bool *far)
{
	u32 before = (due - packet->sequence - packet->payload) & LIFE_STAMP;

	*far = before > SENT_AGAIN_MOST;
	return before <= LIFE_STAMP / 2;
}

/* ---- time ---------------------------------------------------------------- */

static __always_inline u32 request_unit(void)
{
	return bpf_ktime_get_ns() >> REQUEST_UNIT_SHIFT & LIFE_STAMP;
}

/*
 * Now, for one in 2^shift requests; else REQUEST_UNTIMED. By flow and place in
 * it: the requests of a connection that lives for long are drawn one by one.
 */
static __always_inline u32 request_stamp(u64 hash, u32 sequence, u32 due,
					 u32 shift)
{
	u32 unit;

	if (((sequence - due) & LIFE_STAMP) == 1)
		return REQUEST_UNTIMED;
	if (hash_mix(hash ^ sequence) & ((1ULL << (shift & 31)) - 1))
		return REQUEST_UNTIMED;
	unit = request_unit();
	return unit < REQUEST_FIRST_UNIT ? LIFE_STAMP : unit;
}

static __always_inline bool timed(u64 life)
{
	return (life & LIFE(FLOW_REQUEST)) &&
	       (life & LIFE_STAMP) >= REQUEST_FIRST_UNIT;
}

/* Ticks since a timed request. */
static __always_inline s32 request_ticks(u64 life, u32 tick)
{
	u32 seen = life >> LIFE_TICK;
	u32 began = (life & LIFE_STAMP) >> STAMP_TICK;
	u32 until_seen = (seen - began + SKEW_TICKS) % WRAP_TICKS - SKEW_TICKS;

	return tick - seen + until_seen;
}

/* Before last seen moves, or the stamp would tell less than the truth. */
static __always_inline void keep_late(struct flow *flow, u64 *life, u32 tick)
{
	u64 late, seen;

	for (u32 i = 0; i < LATE_TRIES; i++) {
		if (!timed(*life) || request_ticks(*life, tick) < LATE_TICKS)
			return;
		late = (*life & ~(u64)LIFE_STAMP) | REQUEST_LATE;
		seen = swap(&flow->life, *life, late);
		*life = seen == *life ? late : seen;
	}
}

/* From the request that life tells of until now; of one that is not untimed. */
static __always_inline u32 response_us(u64 life, u32 tick)
{
	u32 units;

	if (!timed(life) || request_ticks(life, tick) >= LATE_TICKS)
		return LATE_US;
	units = (request_unit() - (u32)life) & LIFE_STAMP;
	return units * 128U / 125U;
}

/* ---- a request's life ---------------------------------------------------- */

/* The first byte that a request may begin with. */
static __always_inline void expect_request(struct flow *flow, u64 life, u32 due)
{
	u64 seen;

	for (u32 i = 0; i < LIFE_TRIES; i++) {
		if (life & LIFE(FLOW_REQUEST))
			return;
		seen = swap(&flow->life, life,
			    (life & ~(u64)LIFE_STAMP) | (due & LIFE_STAMP));
		if (seen == life)
			return;
		life = seen;
	}
}

/* Whether it was this call that started one. */
static __always_inline bool start_request(struct flow *flow, u64 life,
					  u32 stamp, u32 tick)
{
	u64 seen;

	for (u32 i = 0; i < LIFE_TRIES; i++) {
		if (life & LIFE(FLOW_REQUEST))
			return false;
		seen = swap(&flow->life, life,
			    (u64)tick << LIFE_TICK | (life & LIFE(0xff)) |
				    LIFE(FLOW_REQUEST) | stamp);
		if (seen == life)
			return true;
		life = seen;
	}
	return false;
}

/* The life that told of it, if it was this call that ended it; else 0. */
static __always_inline u64 end_request(struct flow *flow, u64 life, u32 due)
{
	u64 seen;

	for (u32 i = 0; i < LIFE_TRIES; i++) {
		if (!(life & LIFE(FLOW_REQUEST)))
			return 0;
		seen = swap(&flow->life, life,
			    (life & ~(LIFE(FLOW_REQUEST) | LIFE_STAMP)) |
				    (due & LIFE_STAMP));
		if (seen == life)
			return life;
		life = seen;
	}
	return 0;
}

#endif
