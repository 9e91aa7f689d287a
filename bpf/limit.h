/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How many new flows an endpoint may be given in 100 ms: one count for all CPUs,
 * which the first flow of a new window empties. Knows no map.
 */
#ifndef PENUMBRA_LIMIT_H
#define PENUMBRA_LIMIT_H

#include "store.h"
#include "structs.h"

/*
 * Counts a new flow, and says whether it is within the limit. A CPU whose clock
 * was read a jiffy earlier counts in the window that the others are in already.
 */
static __always_inline bool within_limit(struct limit *limit, u32 window)
{
	u32 most = *(volatile u32 *)&limit->limit;
	u64 seen;

	if (!most)
		return true;
	seen = *(volatile u64 *)&limit->used;
	if (DRY_RUN)
		return (s32)(window - (u32)(seen >> LIMIT_WINDOW)) > 0 ||
		       (u32)seen < most;
	if ((s32)(window - (u32)(seen >> LIMIT_WINDOW)) > 0) {
		__sync_val_compare_and_swap(&limit->used, seen,
					    (u64)window << LIMIT_WINDOW);
		seen = *(volatile u64 *)&limit->used;
	}
	/* A full window takes no more: the count can't run over into the next. */
	return (u32)seen < most &&
	       (u32)__sync_fetch_and_add(&limit->used, 1) < most;
}

#endif
