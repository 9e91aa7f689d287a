/* SPDX-License-Identifier: GPL-2.0-only */
/* libc's pulls in sys/socket.h. */
#define IFNAMSIZ 16
