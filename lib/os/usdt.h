/* SPDX-License-Identifier: MIT */
/*
 * Where a tracer can look: USDT probes of provider "libgmem", a no-op each
 * while nobody does. gmem.7 documents them; a test compares it with what is in
 * the library. Built with -Dusdt=enabled, or where <sys/sdt.h> is found.
 */
#ifndef GMEM_PROBES_H
#define GMEM_PROBES_H

#ifdef HAVE_SDT
#define SDT_USE_VARIADIC 1
#include <sys/sdt.h>

#define GMEM_PROBE(name, ...) STAP_PROBEV(libgmem, name, __VA_ARGS__)
#else
#define GMEM_PROBE(name, ...) ((void)0)
#endif

#endif
