/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "unit_share.h"

int unit_memfd(uint64_t size, int seals)
{
	int fd = memfd_create("test", MFD_ALLOW_SEALING | MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

int unit_exchange(struct gmem_export *exporter, struct gmem_peer *peer,
		  struct gmem_import *import)
{
	int ret;

	do {
		assert_ok(gmem_export_dispatch(exporter));
		ret = gmem_import_dispatch(import);
		if (ret < 0)
			fail_msg("the import says: %s", gmem_last_error());
		assert_ok(gmem_export_dispatch(exporter));
	} while (gmem_peer_status(peer) == 0);
	assert_int_equal(gmem_peer_status(peer), 1);
	return ret;
}

static void *answer_all(void *data)
{
	struct unit_answerer *answerer = data;
	struct pollfd fd = { .fd = gmem_import_fd(answerer->import), .events = POLLIN };

	while (!__atomic_load_n(&answerer->stop, __ATOMIC_ACQUIRE)) {
		poll(&fd, 1, 5);
		if (gmem_import_dispatch(answerer->import) < 0)
			break;
	}
	return NULL;
}

void unit_start_answering(struct unit_answerer *answerer, struct gmem_import *import)
{
	answerer->import = import;
	answerer->stop = 0;
	assert_int_equal(pthread_create(&answerer->thread, NULL, answer_all, answerer), 0);
}

void unit_stop_answering(struct unit_answerer *answerer)
{
	__atomic_store_n(&answerer->stop, 1, __ATOMIC_RELEASE);
	assert_int_equal(pthread_join(answerer->thread, NULL), 0);
}
