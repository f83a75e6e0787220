/* SPDX-License-Identifier: MIT */
/* Helpers of the tests of sharing: a memfd, and an importing side that answers */
#ifndef GMEM_UNIT_SHARE_H
#define GMEM_UNIT_SHARE_H

#include <fcntl.h>
#include <pthread.h>

#include "unit.h"

/* What a file needs to be given to others */
#define UNIT_SEALED	(F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* A memfd of so many bytes with these F_SEAL_* */
int unit_memfd(uint64_t size, int seals);

/*
 * Let both sides handle messages until neither has any; their number does not matter.
 * The last result of gmem_import_dispatch().
 */
int unit_exchange(struct gmem_export *exporter, struct gmem_peer *peer,
		  struct gmem_import *import);

/* A thread that stands in for the process at the other end */
struct unit_answerer {
	struct gmem_import *import;
	pthread_t thread;
	int stop;
};

void unit_start_answering(struct unit_answerer *answerer, struct gmem_import *import);
void unit_stop_answering(struct unit_answerer *answerer);

#endif
