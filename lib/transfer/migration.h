/* SPDX-License-Identifier: MIT */
/*
 * migration: a VM's memory sent while the VM runs, in rounds.
 *
 * Each round is a save (save.c) of what a tracker (dirty/tracker.h) has collected, driven in
 * steps, so that between two of them it can wait: for the file, for the limit, and for
 * nothing any more once it is cancelled. What a stream is, gmem-image(5) says.
 */
#ifndef GMEM_MIGRATION_H
#define GMEM_MIGRATION_H

#include "gmem.h"

#endif
