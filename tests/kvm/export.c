/* SPDX-License-Identifier: MIT */
/* Guest memory in other processes: real files, real sockets, and peers that are killed. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lab.h"

#define BASE		(256 * MIB)
#define MORE		(512 * MIB)
#define PAGES		4
#define PATIENT		60000	/* ms: an answer is to come */

/* MFD_HUGETLB | MFD_HUGE_2MB, Linux 4.14; C libraries do not name both */
#define MFD_OF_2_MIB	(0x0004U | 21u << 26)

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* ---- the other process: does what it is told, one order at a time ---- */

enum order { LOAD, STORE, STOP_ANSWERING };

struct task {
	uint64_t gpa;
	uint64_t value;
	enum order order;
	int result;
};

struct device {
	pid_t pid;
	int orders;		/* SOCK_SEQPACKET, struct task each way */
	int sock;		/* for the export */
};

static int perform(struct gmem_view *view, struct task *task, bool *answers)
{
	switch (task->order) {
	case LOAD:
		return gmem_view_load(view, task->gpa, 4, GMEM_ACQUIRE, &task->value);
	case STORE:
		return gmem_view_store(view, task->gpa, 4, GMEM_RELEASE, task->value);
	default:
		*answers = false;
		return 0;
	}
}

/* Ends with the order socket; nothing it meets in guest memory may end it before. */
static void run_device(int sock, int orders)
{
	struct pollfd fds[] = { { .fd = orders, .events = POLLIN }, { .fd = sock, .events = POLLIN } };
	struct gmem_import *import;
	struct gmem_view *view;
	bool answers = true;
	struct task task;

	if (gmem_recovery_enable() || gmem_import_new(sock, NULL, &import) ||
	    gmem_import_view_new(import, &view))
		_exit(3);

	for (;;) {
		fds[1].events = answers ? POLLIN : 0;
		poll(fds, answers ? 2 : 1, -1);
		if (answers && gmem_import_dispatch(import) < 0)
			answers = false;
		if (!(fds[0].revents & (POLLIN | POLLHUP)))
			continue;
		if (recv(orders, &task, sizeof(task), 0) != sizeof(task))
			break;
		task.result = perform(view, &task, &answers);
		if (send(orders, &task, sizeof(task), 0) != sizeof(task))
			break;
	}
	gmem_view_free(view);
	gmem_import_free(import);
	_exit(0);
}

static void device_start(struct device *device)
{
	int sockets[2], orders[2];

	WORKS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets));
	WORKS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, orders));
	device->pid = (pid_t)WORKS(fork());
	if (!device->pid) {
		close(sockets[0]);
		close(orders[0]);
		run_device(sockets[1], orders[1]);
	}
	close(sockets[1]);
	close(orders[1]);
	device->sock = sockets[0];
	device->orders = orders[0];
}

static void device_stop(struct device *device)
{
	int status;

	close(device->orders);
	WORKS(waitpid(device->pid, &status, 0));
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 0);
}

static int device_does(struct device *device, struct task *task)
{
	WORKS(send(device->orders, task, sizeof(*task), 0));
	CHECK_EQ(recv(device->orders, task, sizeof(*task), 0), sizeof(*task));
	return task->result;
}

static int device_loads(struct device *device, uint64_t gpa, uint32_t *ret)
{
	struct task task = { .order = LOAD, .gpa = gpa };
	int err = device_does(device, &task);

	*ret = (uint32_t)task.value;
	return err;
}

static int device_stores(struct device *device, uint64_t gpa, uint32_t value)
{
	struct task task = { .order = STORE, .gpa = gpa, .value = value };

	return device_does(device, &task);
}

#define DEVICE_LOADS(device, gpa, wanted)                                \
	do {                                                             \
		uint32_t loaded_ = 0;                                    \
		CHECK_RESULT(device_loads(device, gpa, &loaded_), 0);    \
		CHECK_EQ(loaded_, wanted);                               \
	} while (0)

#define DEVICE_CANNOT_LOAD(device, gpa, err)                             \
	do {                                                             \
		uint32_t loaded_;                                        \
		CHECK_RESULT(device_loads(device, gpa, &loaded_), err);  \
	} while (0)

/* ---- the VMM's side ---- */

/* How an export knows the file behind host memory */
enum naming { NAMED_TO_IT, NAMED_BY_REGION, MAPPED_BY_LIBRARY, MADE_BY_LIBRARY, NAMINGS };

struct site {
	struct lab lab;
	enum naming naming;
	struct gmem_export *exporter;
	struct gmem_peer *peer;
	struct device device;
};

/* The device first: it is to inherit nothing of the VM. */
static void site_new(struct site *s, int type, const struct gmem_peer_opts *opts)
{
	s->naming = NAMED_TO_IT;
	device_start(&s->device);
	lab_new(&s->lab, type);
	OK(gmem_export_new(s->lab.vm, NULL, &s->exporter));
	OK(gmem_peer_add(s->exporter, s->device.sock, opts, &s->peer));
	close(s->device.sock);
}

static void site_free(struct site *s)
{
	gmem_export_free(s->exporter);
	device_stop(&s->device);
	lab_free(&s->lab);
}

static void settle(struct site *s)
{
	struct pollfd fd = { .fd = gmem_export_fd(s->exporter), .events = POLLIN };
	int status;

	for (;;) {
		OK(gmem_export_dispatch(s->exporter));
		status = gmem_peer_status(s->peer);
		if (status)
			break;
		WORKS(poll(&fd, 1, -1));
	}
	CHECK_RESULT(status, 1);
}

/* Memory from a memfd, named to the export; a region of it is added by the caller. */
static void *name_memory(struct site *s, uint64_t size, int seals, int *ret_fd)
{
	int fd = (int)WORKS(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	void *hva;

	WORKS(ftruncate(fd, (off_t)size));
	hva = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(hva != MAP_FAILED);
	WORKS(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | seals));
	OK(gmem_export_add_memory(s->exporter, hva, size, fd, 0));
	*ret_fd = fd;
	return hva;
}

static struct gmem_region *add_memory(struct site *s, uint32_t backing, uint64_t gpa)
{
	GMEM_OPTS(gmem_memory_opts, memory, .flags = GMEM_MEMORY_MEMFD);
	struct gmem_region_opts opts = { .size = sizeof(opts) };
	struct gmem_region *region;
	int fd = -1;

	if (backing == GMEM_BACKING_SHARED || backing == GMEM_BACKING_MAPPED)
		return lab_add(&s->lab, backing, gpa, PAGES, NULL);
	if (s->naming == MADE_BY_LIBRARY) {
		opts.memory = &memory;
		return lab_add(&s->lab, backing, gpa, PAGES, &opts);
	}

	opts.flags = s->naming == MAPPED_BY_LIBRARY ? 0 : GMEM_REGION_HVA;
	opts.hva = name_memory(s, PAGES * s->lab.page, 0, &fd);
	if (s->naming != NAMED_TO_IT) {
		OK(gmem_export_remove_memory(s->exporter, opts.hva));
		opts.flags |= GMEM_REGION_MEMORY_FD;
		opts.memory_fd = fd;
	}
	region = lab_add(&s->lab, backing, gpa, PAGES, &opts);
	close(fd);
	return region;
}

/* ---- what guest and device see of each other ---- */

static unsigned int for_each_way(void (*run)(struct site *, uint32_t backing))
{
	GMEM_OPTS(gmem_peer_opts, opts, .wait_ms = PATIENT);
	unsigned int count = 0;

	for (uint32_t backing = GMEM_BACKING_HOST; backing <= GMEM_BACKING_SHARED; backing++) {
		unsigned int namings = backing == GMEM_BACKING_HOST ? NAMINGS : 1;
		struct site s;

		if (!(expect_vm(DEFAULT_VM)->backings & 1u << backing))
			continue;
		for (unsigned int naming = 0; naming < namings; naming++) {
			in_case("%s memory, named in way %u", gmem_backing_name(backing), naming);
			site_new(&s, DEFAULT_VM, &opts);
			s.naming = naming;
			run(&s, backing);
			site_free(&s);
			count++;
		}
	}
	return count;
}

static void see_each_other(struct site *s, uint32_t backing)
{
	struct gmem_region *region = add_memory(s, backing, BASE);

	settle(s);
	GUEST_STORES(&s->lab.guest, BASE + 4, 0x11223344);
	host_load((char *)gmem_region_hva(region) + 4);
	DEVICE_LOADS(&s->device, BASE + 4, 0x11223344);
	CHECK_RESULT(device_stores(&s->device, BASE + s->lab.page, 0x55667788), 0);
	host_load((char *)gmem_region_hva(region) + s->lab.page);
	GUEST_LOADS(&s->lab.guest, BASE + s->lab.page, 0x55667788);
	DEVICE_CANNOT_LOAD(&s->device, BASE - 4, -ENOENT);
}

TEST(guest_and_device_see_what_the_other_wrote)
{
	CHECK(for_each_way(see_each_other) > 0);
}

static void come_and_go(struct site *s, uint32_t backing)
{
	struct gmem_region *region = add_memory(s, backing, BASE), *more;

	for (int i = 0; i < 10; i++) {
		more = add_memory(s, backing, MORE);
		host_store(gmem_region_hva(more), 7);
		settle(s);
		DEVICE_LOADS(&s->device, MORE, 7);
		OK(gmem_region_remove(more));
		DEVICE_CANNOT_LOAD(&s->device, MORE, -ESTALE);
	}
	host_store(gmem_region_hva(region), 8);
	OK(gmem_region_move(region, MORE));
	settle(s);
	DEVICE_LOADS(&s->device, MORE, 8);
	DEVICE_CANNOT_LOAD(&s->device, BASE, -ESTALE);
}

TEST(regions_come_and_go_under_a_device)
{
	CHECK(for_each_way(come_and_go) > 0);
}

/* ---- devices that end, and devices that do not answer ---- */

static void kill_device(struct site *s)
{
	int status;

	WORKS(kill(s->device.pid, SIGKILL));
	WORKS(waitpid(s->device.pid, &status, 0));
	close(s->device.orders);
}

TEST(a_device_killed_at_any_time_holds_nothing_up)
{
	GMEM_OPTS(gmem_peer_opts, opts, .wait_ms = PATIENT);

	for (int i = 0; i < 24; i++) {
		struct gmem_region *region;
		struct site s;

		in_case("killed after %d dispatches", i / 2);
		site_new(&s, DEFAULT_VM, &opts);
		region = add_memory(&s, GMEM_BACKING_HOST, BASE);
		for (int j = 0; j < i / 2; j++)
			OK(gmem_export_dispatch(s.exporter));
		if (i % 2)
			settle(&s);
		kill_device(&s);
		OK(gmem_region_remove(region));
		OK(gmem_export_dispatch(s.exporter));
		CHECK_RESULT(gmem_peer_status(s.peer), -EPIPE);
		gmem_export_free(s.exporter);
		lab_free(&s.lab);
	}
}

TEST(a_device_that_does_not_answer_keeps_its_memory_or_is_cut_off)
{
	struct task stop = { .order = STOP_ANSWERING };
	struct gmem_region *region;

	for (int cut_off = 0; cut_off <= 1; cut_off++) {
		GMEM_OPTS(gmem_peer_opts, opts, .flags = cut_off ? GMEM_PEER_CUT_OFF : 0,
			  .wait_ms = 20);
		struct site s;

		site_new(&s, DEFAULT_VM, &opts);
		region = add_memory(&s, GMEM_BACKING_HOST, BASE);
		host_store(gmem_region_hva(region), 9);
		settle(&s);
		CHECK_RESULT(device_does(&s.device, &stop), 0);
		if (cut_off) {
			OK(gmem_region_remove(region));
			CHECK_RESULT(gmem_peer_status(s.peer), -ETIMEDOUT);
		} else {
			REFUSED(gmem_region_remove(region), -ETIMEDOUT);
			GUEST_LOADS(&s.lab.guest, BASE, 9);
		}
		/* The device can still use its mapping, which keeps the file. */
		DEVICE_LOADS(&s.device, BASE, 9);
		site_free(&s);
	}
}

TEST(garbage_ends_a_peer_and_nothing_else)
{
	uint8_t garbage[256];
	struct gmem_peer *peer;
	int sockets[2];

	for (size_t size = 1; size <= sizeof(garbage); size += 17) {
		GMEM_OPTS(gmem_peer_opts, opts, .wait_ms = PATIENT);
		struct site s;

		memset(garbage, (int)size, sizeof(garbage));
		site_new(&s, DEFAULT_VM, &opts);
		WORKS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets));
		OK(gmem_peer_add(s.exporter, sockets[0], NULL, &peer));
		add_memory(&s, GMEM_BACKING_HOST, BASE);
		WORKS(send(sockets[1], garbage, size, 0));
		settle(&s);
		CHECK_RESULT(gmem_peer_status(peer), -EPROTO);
		CHECK_RESULT(device_stores(&s.device, BASE, 1), 0);
		close(sockets[0]);
		close(sockets[1]);
		site_free(&s);
	}
}

/* ---- a hostile exporter; there need be no KVM ---- */

#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76		/* Linux 6.5 */
#endif
#define MAX_PASSED 253		/* SCM_MAX_FD */

/* "hello" of pages of the host, or "ready", little-endian */
static void make_message(uint8_t bytes[64], uint8_t type, uint8_t sequence)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	memset(bytes, 0, 64);
	memcpy(bytes, "GMEM\1\0", 6);
	bytes[6] = type;
	bytes[8] = sequence;
	for (int i = 0; type == 1 && i < 4; i++)
		bytes[56 + i] = (uint8_t)(page >> 8 * i);
}

static int tell(int sock, struct gmem_import *import, uint8_t type, uint8_t sequence, size_t fds)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(MAX_PASSED * sizeof(int))];
	} control = { .bytes = { 0 } };
	uint8_t bytes[64];
	struct iovec iov = { .iov_base = bytes, .iov_len = sizeof(bytes) };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };

	make_message(bytes, type, sequence);
	if (fds) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(fds * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(fds * sizeof(int));
		for (size_t i = 0; i < fds; i++)
			memcpy(CMSG_DATA(&control.header) + i * sizeof(int), &sock, sizeof(sock));
	}
	CHECK_EQ(WORKS(sendmsg(sock, &message, 0)), sizeof(bytes));
	return gmem_import_dispatch(import);
}

/* Whoever made the importer's socket can have set options that add fds to its messages. */
TEST(fds_of_any_control_message_are_closed)
{
	static const size_t passed[] = { 1, 2, 5, MAX_PASSED };
	const int on = 1;
	unsigned int before;
	int sockets[2];

	for (size_t i = 0; i < sizeof(passed) / sizeof(passed[0]); i++) {
		struct gmem_import *import;

		before = count_open_fds();
		WORKS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets));
		/* without it, only the files are tried */
		setsockopt(sockets[1], SOL_SOCKET, SO_PASSPIDFD, &on, sizeof(on));
		WORKS(setsockopt(sockets[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)));
		OK(gmem_import_new(sockets[1], NULL, &import));
		CHECK_RESULT(tell(sockets[0], import, 1, 1, 0), 0);
		for (uint8_t n = 2; n < 100; n++)
			CHECK_RESULT(tell(sockets[0], import, 6, n, 0), 1);
		CHECK_RESULT(tell(sockets[0], import, 6, 100, passed[i]), -EPROTO);
		gmem_import_free(import);
		close(sockets[0]);
		close(sockets[1]);
		CHECK_EQ(count_open_fds(), before);
	}
}

/* ---- rights ---- */

static int received_fd(int sock)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	char bytes[64];
	struct iovec iov = { .iov_base = bytes, .iov_len = sizeof(bytes) };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
				  .msg_controllen = sizeof(control) };
	int fd;

	CHECK_EQ(WORKS(recvmsg(sock, &message, 0)), sizeof(bytes));
	if (!CMSG_FIRSTHDR(&message))
		return -1;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

/* A peer that has the fd itself, and tries what it was not given */
TEST(memory_for_reading_cannot_be_written_by_any_way_round)
{
	/* "answer" to number 1, little-endian */
	const uint8_t answer[64] = { 0x47, 0x4d, 0x45, 0x4d, 1, 0, 7, 0, 1 };
	struct gmem_region_opts opts = { .size = sizeof(opts), .flags = GMEM_REGION_HVA };
	int sockets[2], fd, got, again;
	struct gmem_peer *peer;
	struct site s;
	char path[64];

	site_new(&s, DEFAULT_VM, NULL);
	opts.hva = name_memory(&s, PAGES * s.lab.page, F_SEAL_FUTURE_WRITE, &fd);
	lab_add(&s.lab, GMEM_BACKING_HOST, BASE, PAGES, &opts);
	WORKS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets));
	OK(gmem_peer_add(s.exporter, sockets[0], NULL, &peer));
	settle(&s);
	CHECK_RESULT(device_stores(&s.device, BASE, 1), -EROFS);
	DEVICE_LOADS(&s.device, BASE, 0);

	OK(gmem_export_dispatch(s.exporter));
	CHECK_EQ(received_fd(sockets[1]), -1);
	WORKS(send(sockets[1], answer, sizeof(answer), 0));
	OK(gmem_export_dispatch(s.exporter));
	got = received_fd(sockets[1]);
	CHECK(got >= 0);
	CHECK_RESULT(SYS((long)mmap(NULL, s.lab.page, PROT_READ | PROT_WRITE, MAP_SHARED, got, 0)),
		     -EPERM);
	CHECK_RESULT(SYS(pwrite(got, "x", 1, 0)), -EPERM);
	CHECK_RESULT(SYS(ftruncate(got, 0)), -EPERM);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", got);
	again = open(path, O_RDWR | O_CLOEXEC);
	if (again >= 0) {
		CHECK_RESULT(SYS(pwrite(again, "x", 1, 0)), -EPERM);
		close(again);
	}
	/* the guest can still write */
	GUEST_STORES(&s.lab.guest, BASE, 5);
	host_load(opts.hva);
	DEVICE_LOADS(&s.device, BASE, 5);
	close(got);
	close(fd);
	close(sockets[0]);
	close(sockets[1]);
	site_free(&s);
}

/* ---- conversion ---- */

static void private_site(struct site *s, uint32_t wait_ms, enum naming naming)
{
	GMEM_OPTS(gmem_peer_opts, opts, .wait_ms = wait_ms);

	if (!expect_vm(PRIVATE_VM)->exists)
		skip("no VM here has private memory");
	site_new(s, PRIVATE_VM, &opts);
	s->naming = naming;
	add_memory(s, GMEM_BACKING_PRIVATE, BASE);
	settle(s);
}

static void take_what_becomes_private(enum naming naming)
{
	struct site s;

	private_site(&s, PATIENT, naming);
	CHECK_RESULT(device_stores(&s.device, BASE + s.lab.page, 1), 0);
	for (int i = 0; i < 10; i++) {
		OK(gmem_vm_convert(s.lab.vm, BASE + s.lab.page, s.lab.page, GMEM_STATE_PRIVATE, NULL,
				   NULL));
		DEVICE_CANNOT_LOAD(&s.device, BASE + s.lab.page, -EACCES);
		GUEST_STORES(&s.lab.guest, BASE + s.lab.page, 0x5ec2e7);
		CHECK_RESULT(device_stores(&s.device, BASE + s.lab.page, 2), -EACCES);
		CHECK_RESULT(device_stores(&s.device, BASE, 3), 0);
		GUEST_LOADS(&s.lab.guest, BASE + s.lab.page, 0x5ec2e7);

		OK(gmem_vm_convert(s.lab.vm, BASE + s.lab.page, s.lab.page, GMEM_STATE_SHARED, NULL,
				   NULL));
		settle(&s);
		/* nothing of what was private */
		DEVICE_LOADS(&s.device, BASE + s.lab.page, 0);
	}
	site_free(&s);
}

TEST(memory_that_becomes_private_is_taken_from_a_device)
{
	for (enum naming naming = NAMED_TO_IT; naming < NAMINGS; naming++)
		take_what_becomes_private(naming);
}

TEST(without_a_devices_answer_memory_does_not_become_private)
{
	struct task stop = { .order = STOP_ANSWERING };
	struct site s;

	private_site(&s, 20, NAMED_TO_IT);
	CHECK_RESULT(device_does(&s.device, &stop), 0);
	REFUSED(gmem_vm_convert(s.lab.vm, BASE, s.lab.page, GMEM_STATE_PRIVATE, NULL, NULL),
		-ETIMEDOUT);
	CHECK_RESULT(device_stores(&s.device, BASE, 4), 0);
	GUEST_LOADS(&s.lab.guest, BASE, 4);
	site_free(&s);
}

/* ---- huge pages ---- */

#define HUGE		(2 * MIB)
#define HUGE_PAGES	2

/* A sealed memfd of huge pages, mapped; skips the test where there are none. */
static void *map_huge_pages(int *ret_fd)
{
	int fd = memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_OF_2_MIB);
	void *hva = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, HUGE_PAGES * HUGE) == 0)
		hva = mmap(NULL, HUGE_PAGES * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (hva == MAP_FAILED)
		skip("no two huge pages of 2 MiB are free (/proc/sys/vm/nr_hugepages)");
	WORKS(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
	*ret_fd = fd;
	return hva;
}

TEST(huge_pages_are_given_and_taken_back_whole)
{
	const int type = expect_vm(PRIVATE_VM)->exists ? PRIVATE_VM : DEFAULT_VM;
	const uint32_t backing = type == PRIVATE_VM ? GMEM_BACKING_PRIVATE : GMEM_BACKING_HOST;
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	GMEM_OPTS(gmem_peer_opts, patient, .wait_ms = PATIENT);
	struct gmem_extent extent;
	uint64_t page;
	struct site s;
	int fd;

	opts.hva = map_huge_pages(&fd);
	site_new(&s, type, &patient);
	page = s.lab.page;
	OK(gmem_export_add_memory(s.exporter, opts.hva, HUGE_PAGES * HUGE, fd, 0));
	lab_add(&s.lab, backing, BASE, HUGE_PAGES * HUGE / page, &opts);
	settle(&s);
	CHECK_EQ(gmem_export_table(s.exporter, &extent, 1), 1);
	CHECK_EQ(extent.page_size, HUGE);
	GUEST_STORES(&s.lab.guest, BASE + page, 0x11223344);
	DEVICE_LOADS(&s.device, BASE + page, 0x11223344);
	CHECK_RESULT(device_stores(&s.device, BASE + HUGE, 0x55667788), 0);
	GUEST_LOADS(&s.lab.guest, BASE + HUGE, 0x55667788);
	for (int i = 0; type == PRIVATE_VM && i < 10; i++) {
		OK(gmem_vm_convert(s.lab.vm, BASE + page, page, GMEM_STATE_PRIVATE, NULL, NULL));
		DEVICE_CANNOT_LOAD(&s.device, BASE + page, -EACCES);
		DEVICE_CANNOT_LOAD(&s.device, BASE, -EACCES);
		DEVICE_LOADS(&s.device, BASE + HUGE, 0x55667788);
		OK(gmem_vm_convert(s.lab.vm, BASE + page, page, GMEM_STATE_SHARED, NULL, NULL));
		settle(&s);
		DEVICE_LOADS(&s.device, BASE, 0);
	}
	site_free(&s);
	munmap(opts.hva, HUGE_PAGES * HUGE);
	close(fd);
}

TEST(a_part_of_a_huge_page_is_not_given)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA);
	GMEM_OPTS(gmem_peer_opts, whole, .flags = GMEM_PEER_WHOLE_FILES);
	struct gmem_peer *peer;
	int sockets[2], fd;
	struct site s;
	char *hva;

	hva = map_huge_pages(&fd);
	WORKS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets));
	for (int i = 0; i < 2; i++) {
		site_new(&s, DEFAULT_VM, NULL);
		OK(gmem_export_add_memory(s.exporter, hva, HUGE_PAGES * HUGE, fd, 0));
		opts.hva = hva + (i ? s.lab.page : 0);
		lab_add(&s.lab, GMEM_BACKING_HOST, BASE, i ? HUGE / s.lab.page : 1, &opts);
		REFUSED(gmem_peer_add(s.exporter, sockets[0], &whole, &peer), -EOPNOTSUPP);
		site_free(&s);
	}
	close(sockets[0]);
	close(sockets[1]);
	munmap(hva, HUGE_PAGES * HUGE);
	close(fd);
}

int main(int argc, char **argv)
{
	return run_tests(argc, argv);
}
