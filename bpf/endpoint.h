/* SPDX-License-Identifier: GPL-2.0-only */
/* References and the state of what they name. Knows no map. */
#ifndef PENUMBRA_ENDPOINT_H
#define PENUMBRA_ENDPOINT_H

#include "structs.h"

#define TAKES_NONE (ENDPOINT_DOWN | ENDPOINT_DRAINING | ENDPOINT_EVICTED)

static __always_inline u32 ref_index(u32 ref)
{
	return ref & REF_INDEX_MASK;
}

static __always_inline u32 ref_of(u32 index, u64 state)
{
	return ((state >> 32) & REF_GENERATION_MASK) << REF_INDEX_BITS | index;
}

static __always_inline bool ref_current(u32 ref, u64 state)
{
	return ((state >> 32) & REF_GENERATION_MASK) == ref >> REF_INDEX_BITS;
}

static __always_inline bool takes_new(u64 state)
{
	return !(state & TAKES_NONE);
}

/* 0: present, of the reference's generation, and takes new flows. */
static __always_inline u64 ref_unusable(u32 ref, u64 state)
{
	u64 flags = state & (ENDPOINT_PRESENT | TAKES_NONE);

	return (flags ^ ENDPOINT_PRESENT) |
	       (((state >> 32) & REF_GENERATION_MASK) ^ ref >> REF_INDEX_BITS);
}

#endif
