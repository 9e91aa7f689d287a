/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What `penumbra capture` and the program that it puts in the steering one's place
 * for the time tell each other. Knows no map.
 */
#ifndef PENUMBRA_CAPTURE_H
#define PENUMBRA_CAPTURE_H

#include "structs.h"

#define SNAP_MAX 16384		/* bytes of a frame, at most */
#define CAPTURE_ANY 0xffffffffU

/* What is wanted; user space writes it. */
struct capturing {
	__u32 until_tick;	/* past it nothing is: whoever asked is gone, or stands still */
	__u32 snap;		/* bytes of a frame */
	__u64 reasons;		/* bits: 1 << enum reason */
	__u32 service;		/* index, or CAPTURE_ANY */
	__u32 endpoint;		/* index, or CAPTURE_ANY */
	__be32 client[ADDRESS_WORDS];
	__be32 mask[ADDRESS_WORDS]; /* bits that count; none: any client */
};
_Static_assert(sizeof(struct capturing) == 56, "capturing");

/* One frame, as it came or as it leaves; :captured bytes of it follow. */
struct captured {
	__u64 time_ns;		/* CLOCK_MONOTONIC */
	__u64 number;		/* of the packet, of this CPU */
	__u32 cpu;
	__u32 ifindex;		/* that it came in by */
	__u32 length;
	__u32 captured;
	__u32 service;		/* index, or CAPTURE_ANY */
	__u32 endpoint;		/* index; 0: none */
	__u8 leaves;		/* 0: as it came */
	__u8 verdict;		/* XDP_* */
	__u8 reason;
	__u8 pad[5];
};
_Static_assert(sizeof(struct captured) == 48, "captured");

struct captured_frame {
	struct captured head;
	__u8 data[SNAP_MAX];
};

/* One CPU's own. */
struct capture_cpu {
	__u64 number;		/* of packets told so far */
	__u64 lost;		/* frames that found no room in the ring */
	__u64 unseen;		/* packets that came past until_tick */
	__u32 on;		/* the present packet was copied */
	__u32 reason;		/* of the present packet, as noted on its way */
	__u32 service;
	__u32 endpoint;
	struct captured_frame came;
	struct captured_frame leaves;
};
_Static_assert(sizeof(struct capture_cpu) == 40 + 2 * (48 + SNAP_MAX), "capture_cpu");

#endif
