/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Stands where BCC looks for the running kernel's headers, so that none are
 * needed: an XDP program uses the kernel's user-space ABI alone. BCC includes
 * this file first. __LINUX_BPF_H__ keeps libc's copy of bpf.h out, for BCC
 * brings its own.
 */
#ifndef PENUMBRA_KCONFIG_H
#define PENUMBRA_KCONFIG_H

#define CONFIG_BPF_SYSCALL 1
#define __LINUX_BPF_H__

#include <linux/types.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
typedef __SIZE_TYPE__ size_t;
typedef __UINTPTR_TYPE__ uintptr_t;

#define true 1
#define false 0
#ifndef NULL
#define NULL ((void *)0)
#endif
#define PAGE_SIZE 4096

#endif
