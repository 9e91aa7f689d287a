/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every store to a map is one of these. Built with -DDRY_RUN=1 the program
 * leaves all of them out and decides the same: so `penumbra trace-packet` asks
 * the maps of a loaded instance without changing them. Knows no map.
 */
#ifndef PENUMBRA_STORE_H
#define PENUMBRA_STORE_H

#ifndef DRY_RUN
#define DRY_RUN 0
#endif

#define STORE(at, value)		\
	do {				\
		if (!DRY_RUN)		\
			(at) = (value);	\
	} while (0)

/* For what only this CPU adds to. */
#define COUNT(at, by)			\
	do {				\
		if (!DRY_RUN)		\
			(at) += (by);	\
	} while (0)

/* For what all CPUs add to. */
#define COUNT_SHARED(at, by)				\
	do {						\
		if (!DRY_RUN)				\
			__sync_fetch_and_add(&(at), by);	\
	} while (0)

/* Returns what was there: :from, if it was :to that was put. A dry run's was. */
static __always_inline u64 swap(u64 *at, u64 from, u64 to)
{
	if (DRY_RUN)
		return *(volatile u64 *)at;
	return __sync_val_compare_and_swap(at, from, to);
}

#endif
