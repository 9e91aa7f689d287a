/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Log-linear buckets, 16 to the octave, so a bucket is at most 1/16 wide.
 * For v in microseconds, with e = floor(log2(v)):
 *
 *	v < 16:  bucket = v
 *	else:    bucket = 16 * (e - 3) + ((v >> (e - 4)) & 15)
 *
 * Lower edge of bucket b >= 16: (16 + b % 16) << (b / 16 - 1).
 */
#ifndef PENUMBRA_HISTOGRAM_H
#define PENUMBRA_HISTOGRAM_H

#include "structs.h"

static __always_inline u32 log2_floor(u32 v)
{
	u32 e = 0;

	if (v >> 16) { v >>= 16; e += 16; }
	if (v >> 8) { v >>= 8; e += 8; }
	if (v >> 4) { v >>= 4; e += 4; }
	if (v >> 2) { v >>= 2; e += 2; }
	return e + (v >> 1);
}

/*
 * 64 bits wide and hidden from the compiler before its end is checked, so that
 * what is checked is the register that is used: 6.1's verifier knows nothing
 * of a copy cut to 32 bits after the check.
 */
static __always_inline u64 histogram_bucket(u32 us)
{
	u64 bucket;
	u32 e;

	if (us < HISTOGRAM_SUB)
		return us;
	e = log2_floor(us);
	bucket = HISTOGRAM_SUB * (e - 3) + ((us >> (e - 4)) & (HISTOGRAM_SUB - 1));
	asm volatile("" : "+r"(bucket));
	return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

#endif
