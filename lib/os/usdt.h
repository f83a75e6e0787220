/* SPDX-License-Identifier: MIT */
/*
 * usdt: USDT probes of provider "libgmem", each a no-op while no tracer uses it.
 *
 * gmem(7) documents the probes, and a test compares it with the library. They are built
 * with -Dusdt=enabled, or by default if <sys/sdt.h> is found.
 */
#ifndef GMEM_USDT_H
#define GMEM_USDT_H

#ifdef HAVE_SDT
#define SDT_USE_VARIADIC 1
#include <sys/sdt.h>

#define GMEM_PROBE(name, ...) STAP_PROBEV(libgmem, name, __VA_ARGS__)
#else
#define GMEM_PROBE(name, ...) ((void)0)
#endif

#endif
