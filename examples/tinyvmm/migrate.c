/* SPDX-License-Identifier: MIT */
/*
 * A running guest goes on in another tinyvmm on this host, which was started with
 * --receive, with the same disk.
 *
 * In the socket are: the machine's state, of which the receiver takes how much memory there
 * is; memory, as a stream of libgmem, most of it while the guest runs; the state again, of
 * the guest that stands still; and from the receiver a byte, when it has all. Without that
 * byte the guest goes on here. Memory is not plugged or unplugged meanwhile.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "tinyvmm.h"

#define MAX_PAUSE_NS	UINT64_C(50000000)
#define MAX_ROUNDS	30

static struct machine_state state;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int new_socket(const char *path, struct sockaddr_un *ret)
{
	*ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(ret->sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(ret->sun_path, path, strlen(path));
	return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static bool send_all(int fd, const void *data, size_t size)
{
	const char *bytes = data;
	ssize_t sent;

	for (; size; bytes += sent, size -= (size_t)sent) {
		sent = send(fd, bytes, size, MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			sent = 0;
		if (sent < 0)
			return false;
	}
	return true;
}

static bool receive_all(int fd, void *data, size_t size)
{
	char *bytes = data;
	ssize_t received;

	for (; size; bytes += received, size -= (size_t)received) {
		received = recv(fd, bytes, size, 0);
		if (received < 0 && errno == EINTR)
			received = 0;
		else if (received <= 0)
			return false;
	}
	return true;
}

/* ---- the source ---- */

/* In a thread of its own: sends rounds until the rest can be sent in a short pause. */
static void *send_rounds(void *data)
{
	GMEM_OPTS(gmem_migration_status, status, .round = 0);
	uint64_t left = UINT64_MAX;
	struct vmm *vmm = data;
	int error;

	do {
		if (status.round)
			left = status.left_bytes;
		error = gmem_migration_round(vmm->migration, &status);
		if (error < 0)
			say("migration: %s", gmem_last_error());
		else
			say("round %" PRIu64 ": %" PRIu64 " KiB sent, %" PRIu64 " KiB left, which take %"
			    PRIu64 " ms", status.round, status.sent_bytes / 1024,
			    status.left_bytes / 1024, status.pause_ns / 1000000);
		/* A guest that changes memory faster than it can be sent gets a longer pause. */
	} while (!error && status.pause_ns > MAX_PAUSE_NS && status.left_bytes < left &&
		 status.round < MAX_ROUNDS);

	pthread_mutex_lock(&vmm->lock);
	vmm->migration_error = error;
	ask(vmm, REQUEST_MIGRATE_REST);
	pthread_mutex_unlock(&vmm->lock);
	return NULL;
}

static bool connect_to(struct vmm *vmm, const char *path)
{
	struct sockaddr_un address;

	vmm->migration_fd = new_socket(path, &address);
	if (vmm->migration_fd >= 0 &&
	    connect(vmm->migration_fd, (struct sockaddr *)&address, sizeof(address)) == 0)
		return true;
	say("nobody receives a guest at %s: %s", path, strerror(errno));
	if (vmm->migration_fd >= 0)
		close(vmm->migration_fd);
	return false;
}

/* Called by the vCPU's thread, so the vCPU does not run. */
void migrate_begin(struct vmm *vmm, const char *path)
{
	GMEM_OPTS(gmem_migration_opts, opts, .flags = GMEM_MIGRATION_VCPUS_STOPPED);
	int error;

	if (!path || vmm->migration) {
		say(path ? "it migrates already" : "nowhere to migrate to: --migrate names a socket");
		return;
	}
	if (!connect_to(vmm, path))
		return;

	state_save(vmm, &state);
	error = send_all(vmm->migration_fd, &state, sizeof(state)) ? 0 : -errno;
	if (error)
		say("migration: %s", strerror(-error));
	else if ((error = gmem_migration_new(vmm->memory, vmm->migration_fd, &opts, &vmm->migration)) < 0)
		say("migration: %s", gmem_last_error());
	if (error) {
		close(vmm->migration_fd);
		return;
	}
	errno = pthread_create(&vmm->migration_thread, NULL, send_rounds, vmm);
	must(errno ? -1 : 0, "the migration's thread");
}

/* Ends a migration, whatever has become of it. */
static void let_go(struct vmm *vmm)
{
	pthread_join(vmm->migration_thread, NULL);
	gmem_migration_free(vmm->migration);
	close(vmm->migration_fd);
	vmm->migration = NULL;
}

/* Called by the vCPU's thread, so the vCPU does not run, and devices neither. */
bool migrate_rest(struct vmm *vmm)
{
	const uint64_t stopped = now_ns();
	char answer = 0;
	bool is_there;

	if (!vmm->migration_error) {
		vmm->migration_error = gmem_migration_finish(vmm->migration, NULL);
		if (vmm->migration_error < 0)
			say("migration: %s", gmem_last_error());
	}
	if (!vmm->migration_error)
		state_save(vmm, &state);
	is_there = !vmm->migration_error && send_all(vmm->migration_fd, &state, sizeof(state)) &&
		   receive_all(vmm->migration_fd, &answer, 1);
	let_go(vmm);

	if (is_there) {
		say("migrated; the guest stood still for %" PRIu64 " ms", (now_ns() - stopped) / 1000000);
		return true;
	}
	say("the guest goes on here");
	if (!vmm->changes)
		gmem_must(gmem_vm_bind_shared(vmm->memory, NULL), "binding memory again");
	return false;
}

/* When the program ends. */
void migrate_end(struct vmm *vmm)
{
	if (!vmm->migration)
		return;
	gmem_migration_cancel(vmm->migration);
	let_go(vmm);
}

/* ---- the receiver ---- */

static int accept_source(const char *path)
{
	struct sockaddr_un address;
	int listening, fd;

	listening = must(new_socket(path, &address), path);
	unlink(path);
	must(bind(listening, (struct sockaddr *)&address, sizeof(address)), path);
	must(listen(listening, 1), path);
	say("waiting for a guest at %s", path);
	fd = must(accept(listening, NULL, NULL), path);
	close(listening);
	unlink(path);
	return fd;
}

static void receive_state(int fd)
{
	const char *fault = "the source is gone";

	if (receive_all(fd, &state, sizeof(state)))
		fault = state_fault(&state);
	if (fault) {
		say("receiving a guest: %s", fault);
		exit(EXIT_FAILURE);
	}
}

void migrate_receive(struct vmm *vmm, const char *path)
{
	const int fd = accept_source(path);

	receive_state(fd);
	state_add_memory(vmm, &state);
	gmem_must(gmem_vm_restore(vmm->memory, fd, NULL, NULL), "receiving a guest");
	receive_state(fd);
	vmm->devices = state.devices;
	vcpu_restore(vmm, &state.vcpu);
	/* From here on the guest is here. */
	if (!send_all(fd, "", 1)) {
		say("receiving a guest: the source is gone");
		exit(EXIT_FAILURE);
	}
	close(fd);
	say("received a guest of %" PRIu64 " MiB", state.ram_size / MIB);
}
