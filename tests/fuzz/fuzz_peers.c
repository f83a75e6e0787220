/* SPDX-License-Identifier: MIT */
/*
 * An export with several peers at once, some of them hostile, on the scripted kernel: they
 * answer, late or never, refuse, send what is no answer, files, or floods, and die, while
 * memory is converted, added, moved and removed, and the kernel refuses things.
 *
 * After each call the record, the views and the kernel agree on what is private; a call that
 * failed changed nothing; and what peers that are still connected were told agrees, too: none
 * of them may use memory that is private or removed. No call takes longer than its peers
 * and its caller allow. When all is quiet, each peer that is connected has exactly
 * what is shared, however it behaved before.
 *
 * The clock is the harness's: it stands still but for calls that wait.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fake.h"
#include "fuzz.h"
#include "os/sys.h"
#include "share/wire.h"

#define PAGE		((uint64_t)4096)
#define REGIONS		3
#define REGION_PAGES	8
#define PAGES		(REGIONS * REGION_PAGES)
#define CONVERTIBLE	(2 * REGION_PAGES)	/* pages of the first two regions */
#define PEERS		4
#define BLOCKS		64
#define MAX_STEPS	48
#define SLACK_MS	40
#define MAX_SENT	8
#define LONGEST_RETRY_MS	3000

/* ---- peers, as they see it ---- */

enum manner { HONEST, LATE, REFUSING, SILENT, WRONG, FLOODING, SENDING_FILES, MANNERS };

struct block {
	uint64_t id;		/* 0: none */
	uint64_t gpa;
	uint64_t size;
};

struct peer {
	struct gmem_peer *handle;	/* NULL: none */
	int sock;			/* -1: it is dead */
	enum manner manner;
	bool was_always_good;		/* since it was added; nor was it hit by a failure */
	bool owes_answer;
	struct gmem_message last;
	unsigned patience;		/* of a late one: how often it looks before it answers */
	uint32_t wait_ms;
	uint64_t from, to;		/* pages that it may have */
	struct block blocks[BLOCKS];
	bool may_use[PAGES];
};

static struct {
	struct fuzz_input in;
	int vm_fd;
	struct gmem_vm *vm;
	struct gmem_view *view;
	struct gmem_export *exporter;
	struct gmem_plan *private_plan, *host_plan;
	struct gmem_region *regions[REGIONS];
	bool is_private[PAGES];
	struct peer peers[PEERS];
	int memfd;
	char *hva;
	uint64_t clock;			/* nanoseconds that calls waited */
	uint64_t timer_at;		/* of the export's timer, by that clock; 0: not set */
	int timer;
	bool is_lost;			/* the kernel refused to undo: nothing is promised any more */
} world;

static unsigned take(void)
{
	return fuzz_take(&world.in);
}

static bool is_connected(const struct peer *peer)
{
	return peer->handle && peer->sock >= 0 && gmem_peer_status(peer->handle) >= 0;
}

static struct block *block_of(struct peer *peer, uint64_t id)
{
	for (size_t i = 0; i < BLOCKS; i++)
		if (peer->blocks[i].id == id)
			return &peer->blocks[i];
	return NULL;
}

static void allow(struct peer *peer, uint64_t gpa, uint64_t size, bool may_use)
{
	for (uint64_t page = gpa / PAGE; page < (gpa + size) / PAGE; page++) {
		CHECK(page < PAGES && page >= peer->from && page < peer->to);
		peer->may_use[page] = may_use;
		if (may_use && is_connected(peer))
			CHECK(!fake_is_private(world.vm_fd, page * PAGE));
	}
}

/* What a peer knows as soon as it reads a message */
static void hear(struct peer *peer, const struct gmem_message *message, int fd)
{
	struct block *block;

	CHECK(message->type != GMEM_WIRE_ANSWER && !peer->owes_answer);
	CHECK((fd >= 0) == (message->type == GMEM_WIRE_MAP));
	CHECK(message->sequence == peer->last.sequence + 1);
	peer->last = *message;
	peer->owes_answer = true;
	peer->patience = peer->manner == LATE ? take() % 8 : 0;
	switch (message->type) {
	case GMEM_WIRE_MAP:
		CHECK(!block_of(peer, message->id));
		block = block_of(peer, 0);
		CHECK(block);
		*block = (struct block){ message->id, message->gpa, message->size };
		allow(peer, message->gpa, message->size, !(message->rights & GMEM_WIRE_WITHHELD));
		break;
	case GMEM_WIRE_GRANT:
	case GMEM_WIRE_REVOKE:
		block = block_of(peer, message->id);
		CHECK(block && message->gpa >= block->gpa &&
		      message->gpa + message->size <= block->gpa + block->size);
		if (message->type == GMEM_WIRE_GRANT)
			allow(peer, message->gpa, message->size, true);
		break;
	case GMEM_WIRE_UNMAP:
		CHECK(block_of(peer, message->id));
		break;
	default:
		break;
	}
}

static bool receive(struct peer *peer)
{
	char control[CMSG_SPACE(4 * sizeof(int))];
	uint8_t bytes[GMEM_WIRE_BYTES + 1];
	struct iovec iov = { .iov_base = bytes, .iov_len = sizeof(bytes) };
	struct msghdr header = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
				 .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(peer->sock, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct gmem_message message;
	int fd = -1;

	if (n <= 0)
		return false;
	if (CMSG_FIRSTHDR(&header))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof(fd));
	CHECK(gmem_wire_decode(bytes, (size_t)n, &message) == 0);
	hear(peer, &message, fd);
	if (fd >= 0)
		close(fd);
	return true;
}

/* What it gave back, with its answer */
static void give_back(struct peer *peer)
{
	struct block *block = block_of(peer, peer->last.id);

	if (peer->last.type == GMEM_WIRE_REVOKE)
		allow(peer, peer->last.gpa, peer->last.size, false);
	if (peer->last.type == GMEM_WIRE_UNMAP && block) {
		allow(peer, block->gpa, block->size, false);
		block->id = 0;
	}
}

static void answer(struct peer *peer)
{
	struct gmem_message message = { .type = GMEM_WIRE_ANSWER, .sequence = peer->last.sequence };
	uint8_t bytes[GMEM_WIRE_BYTES + 8] = { 0 };
	size_t size = GMEM_WIRE_BYTES;
	unsigned count = 1, fds = 0, at;

	peer->owes_answer = false;
	if (peer->manner == REFUSING)
		message.status = 40 + take() % 60;
	else
		give_back(peer);
	gmem_wire_encode(&message, bytes);
	/* Not the status, bytes 12 to 15: with another one it would be a good answer. */
	if (peer->manner == WRONG) {
		at = take() % (GMEM_WIRE_BYTES - 4);
		bytes[at < 12 ? at : at + 4] ^= (uint8_t)(1 + take() % 255);
	}
	if (peer->manner == WRONG && take() & 1)
		size = take() % sizeof(bytes);
	if (peer->manner == FLOODING)
		count = 1 + take() % MAX_SENT;
	if (peer->manner == SENDING_FILES)
		fds = 1 + take() % 3;
	while (count--)
		(void)fake_send_packet(peer->sock, bytes, size, fds, world.memfd);
}

/* Reads and answers what there is, in its manner. Returns whether there was something. */
static bool act(struct peer *peer)
{
	bool acted = false;

	if (!peer->handle || peer->sock < 0 || peer->manner == SILENT)
		return false;
	acted = !peer->owes_answer && receive(peer);
	if (!peer->owes_answer)
		return acted;
	if (peer->patience) {
		peer->patience--;
		return acted;
	}
	answer(peer);
	return true;
}

static void die(struct peer *peer)
{
	if (peer->sock >= 0)
		close(peer->sock);
	peer->sock = -1;
	peer->was_always_good = false;
}

static void set_manner(struct peer *peer)
{
	peer->manner = take() % MANNERS;
	if (peer->manner != HONEST)
		peer->was_always_good = false;
	if (take() % 16 == 0)
		die(peer);
}

/* ---- time passes, and peers act, where the library waits for them ---- */

#define BOOT	UINT64_C(1000000000)

uint64_t __wrap_gmem_sys_now(void);
void __wrap_gmem_sys_timer_set(int fd, uint64_t at);
void __real_gmem_sys_timer_set(int fd, uint64_t at);
int __wrap_gmem_sys_poll_many(struct pollfd *fds, unsigned int count, unsigned int milliseconds);
void __wrap_gmem_sys_pause(unsigned int microseconds);
int __real_gmem_sys_poll_many(struct pollfd *fds, unsigned int count, unsigned int milliseconds);

uint64_t __wrap_gmem_sys_now(void)
{
	return BOOT + world.clock;
}

/* A timer whose time has come is one in the past to the kernel. */
static void look_at_timer(void)
{
	if (world.timer_at)
		__real_gmem_sys_timer_set(world.timer, world.timer_at <= BOOT + world.clock);
}

void __wrap_gmem_sys_timer_set(int fd, uint64_t at)
{
	world.timer = fd;
	world.timer_at = at;
	__real_gmem_sys_timer_set(fd, 0);
	look_at_timer();
}

static void pass(unsigned microseconds)
{
	world.clock += microseconds * UINT64_C(1000);
	look_at_timer();
	/* Nothing waits for minutes. */
	CHECK(world.clock < UINT64_C(600) * 1000000000);
}

int __wrap_gmem_sys_poll_many(struct pollfd *fds, unsigned int count, unsigned int milliseconds)
{
	int ret;

	for (size_t i = 0; i < PEERS; i++)
		act(&world.peers[i]);
	ret = __real_gmem_sys_poll_many(fds, count, 0);
	/* Each look costs a little time, so that a flood does not stop the clock. */
	pass(ret == 0 ? milliseconds * 1000 : 50);
	return ret;
}

void __wrap_gmem_sys_pause(unsigned int microseconds)
{
	for (size_t i = 0; i < PEERS; i++)
		act(&world.peers[i]);
	pass(microseconds + 1);
}

/* ---- what must hold ---- */

static void check_page(uint64_t page)
{
	bool is_there = world.regions[page / REGION_PAGES];
	struct gmem_state_range range;
	void *hva;
	int err;

	gmem_view_begin(world.view);
	err = gmem_view_hva(world.view, page * PAGE, 8, &hva);
	gmem_view_end(world.view);
	if (!is_there) {
		CHECK(err == -ENOENT || err == -ESTALE);
		return;
	}
	CHECK(err == (world.is_private[page] ? -EACCES : 0));
	CHECK(fake_is_private(world.vm_fd, page * PAGE) == world.is_private[page]);
	CHECK(gmem_vm_state(world.vm, page * PAGE, PAGE, &range, 1) == 1);
	CHECK(range.state == (world.is_private[page] ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED));
}

static bool is_kept(const struct peer *peer, uint64_t page)
{
	for (size_t i = 0; i < BLOCKS; i++)
		if (peer->blocks[i].id && page * PAGE - peer->blocks[i].gpa < peer->blocks[i].size)
			return true;
	return false;
}

static void check_peer(struct peer *peer)
{
	int status = peer->handle ? gmem_peer_status(peer->handle) : -EPIPE;

	CHECK(status <= 1 && status > -4096);
	if (status < 0 || peer->sock < 0)
		return;
	for (uint64_t page = 0; page < PAGES; page++) {
		bool is_there = world.regions[page / REGION_PAGES];

		CHECK(!peer->may_use[page] || (is_there && !world.is_private[page]));
		CHECK(!is_kept(peer, page) || is_there);
	}
}

static void check_all(void)
{
	if (world.is_lost)
		return;
	for (uint64_t page = 0; page < PAGES; page++)
		check_page(page);
	for (size_t i = 0; i < PEERS; i++)
		check_peer(&world.peers[i]);
}

/* The longest that a call may wait for peers: they are waited for together. */
static uint64_t longest_wait(void)
{
	uint64_t longest = 0;

	for (size_t i = 0; i < PEERS; i++)
		if (world.peers[i].handle && world.peers[i].wait_ms > longest)
			longest = world.peers[i].wait_ms;
	return (longest + SLACK_MS) * 1000000;
}

/* ---- failures ---- */

static bool take_failure(void)
{
	static const enum fake_call calls[] = { FAKE_SEND, FAKE_SEND, FAKE_SET_ATTRIBUTES, FAKE_SET_ATTRIBUTES,
						FAKE_SET_SLOT2, FAKE_DELETE_SLOT, FAKE_POLL_MANY, FAKE_SEND };
	static const int errors[] = { -ETOOMANYREFS, -EAGAIN, -ENOMEM, -EIO };
	unsigned how = take();
	enum fake_call call = calls[how & 7];

	if (how < 128)
		return false;
	fake_fail_kind(call, how >> 3 & 3, 1 + (how >> 5 & 1),
		       errors[call == FAKE_SEND ? take() % 4 : 2 + take() % 2]);
	return true;
}

/* It may have struck a peer, the time that peers had, or the undoing of something. */
static void end_failure(bool was_asked, int err)
{
	if (was_asked && fake_fail_struck() &&
	    (fake_fail_victim() == FAKE_SEND || fake_fail_victim() == FAKE_POLL_MANY))
		for (size_t i = 0; i < PEERS; i++)
			world.peers[i].was_always_good = false;
	if (err == -ENOTRECOVERABLE)
		world.is_lost = true;
}

/* ---- calls ---- */

static bool is_range_there(uint64_t page, uint64_t pages)
{
	for (uint64_t i = page; i < page + pages; i++)
		if (!world.regions[i / REGION_PAGES])
			return false;
	return true;
}

static void convert_range(uint64_t page, uint64_t pages, bool to_private,
			  const struct gmem_convert_opts *opts, bool may_fail)
{
	bool failing = may_fail && take_failure(), is_there = is_range_there(page, pages);
	uint64_t before = world.clock;
	int err;

	err = gmem_vm_convert(world.vm, page * PAGE, pages * PAGE,
			      to_private ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED, opts, NULL);
	end_failure(failing, err);
	CHECK(world.clock - before <= longest_wait());
	CHECK(err != -EINVAL && is_there == (err != -ENOENT));
	CHECK(may_fail || !err);
	for (uint64_t i = page; !err && i < page + pages; i++)
		world.is_private[i] = to_private;
}

static void convert(void)
{
	unsigned how = take();
	GMEM_OPTS(gmem_convert_opts, opts, .discard = how >> 1 & 1 ? GMEM_DISCARD_LATER : GMEM_DISCARD_NOW,
		  .flags = how & 4 ? GMEM_CONVERT_ALL : 0);
	uint64_t page = take() % CONVERTIBLE;
	uint64_t pages = 1 + take() % (CONVERTIBLE - page);

	convert_range(page, pages, how & 1, &opts, true);
}

static struct gmem_region_opts region_opts(unsigned which)
{
	GMEM_OPTS(gmem_region_opts, opts, .flags = GMEM_REGION_HVA,
		  .plan = which * REGION_PAGES < CONVERTIBLE ? world.private_plan : world.host_plan,
		  .hva = world.hva + which * REGION_PAGES * PAGE);

	return opts;
}

static void note_added(unsigned which)
{
	memset(&world.is_private[which * REGION_PAGES], 0, REGION_PAGES * sizeof(bool));
}

static int add_region(unsigned which)
{
	struct gmem_region_opts opts = region_opts(which);
	int err = gmem_region_add(world.vm, which * REGION_PAGES * PAGE, REGION_PAGES * PAGE, &opts,
				  &world.regions[which]);

	if (!err)
		note_added(which);
	return err;
}

static void add_or_remove(void)
{
	unsigned which = take() % REGIONS;
	bool failing = take_failure();
	uint64_t before = world.clock;
	int err;

	if (world.regions[which]) {
		err = gmem_region_remove(world.regions[which]);
		if (!err)
			world.regions[which] = NULL;
	} else {
		err = add_region(which);
	}
	end_failure(failing, err);
	CHECK(world.clock - before <= longest_wait());
}

/* Removes what is there of two regions, and adds what is not, at once. */
static void change(void)
{
	unsigned first = take() % REGIONS;
	struct gmem_region *next[REGIONS];
	struct gmem_change *change = NULL;
	uint64_t before = world.clock;
	bool failing;
	int err;

	memcpy(next, world.regions, sizeof(next));
	CHECK(gmem_change_new(world.vm, &change) == 0);
	for (unsigned n = 0; n < 2; n++) {
		unsigned which = (first + n) % REGIONS;
		struct gmem_region_opts opts = region_opts(which);

		if (world.regions[which])
			CHECK(gmem_change_remove(change, world.regions[which]) == 0);
		else
			CHECK(gmem_change_add(change, which * REGION_PAGES * PAGE, REGION_PAGES * PAGE,
					      &opts, &next[which]) == 0);
		if (world.regions[which])
			next[which] = NULL;
	}
	failing = take_failure();
	err = gmem_change_apply(change);
	gmem_change_free(change);
	end_failure(failing, err);
	CHECK(world.clock - before <= longest_wait());
	for (unsigned i = 0; i < REGIONS && !err; i++) {
		if (next[i] && !world.regions[i])
			note_added(i);
		world.regions[i] = next[i];
	}
}

static void add_peer(struct peer *peer)
{
	GMEM_OPTS(gmem_peer_opts, opts, .flags = GMEM_PEER_WHOLE_FILES);
	struct gmem_export_range range;
	unsigned how = take();
	int sockets[2], err;
	bool failing = take_failure();

	*peer = (struct peer){ .manner = HONEST, .was_always_good = true, .to = PAGES,
			       .wait_ms = 5 + (how >> 4) * 7 };
	opts.wait_ms = peer->wait_ms;
	if (how & 1)
		opts.flags |= GMEM_PEER_CUT_OFF;
	if (how & 2) {
		peer->from = how >> 2 & 3;
		peer->to = peer->from + REGION_PAGES + 3;
		range = (struct gmem_export_range){ .gpa = peer->from * PAGE,
						    .size = (peer->to - peer->from) * PAGE,
						    .rights = GMEM_RIGHT_READ | GMEM_RIGHT_WRITE };
		opts.ranges = &range;
		opts.range_count = 1;
	}
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) == 0);
	err = gmem_peer_add(world.exporter, sockets[0], &opts, &peer->handle);
	CHECK(!err || failing);
	end_failure(failing, err);
	close(sockets[0]);
	peer->sock = sockets[1];
	if (err) {
		close(sockets[1]);
		*peer = (struct peer){ .sock = -1 };
	}
}

static void remove_peer(struct peer *peer)
{
	gmem_peer_remove(peer->handle);
	if (peer->sock >= 0)
		close(peer->sock);
	*peer = (struct peer){ .sock = -1 };
}

/* Calls it when there is something to do, as a program would that waits so long. */
static bool dispatch(unsigned milliseconds)
{
	struct pollfd fd = { .fd = gmem_export_fd(world.exporter), .events = POLLIN };

	if (poll(&fd, 1, 0) == 0 && milliseconds)
		pass(milliseconds * 1000);
	if (poll(&fd, 1, 0) == 0)
		return false;
	CHECK(gmem_export_dispatch(world.exporter) == 0);
	return true;
}

/* ---- in the end ---- */

static bool is_incomplete(void)
{
	for (size_t i = 0; i < PEERS; i++)
		if (is_connected(&world.peers[i]) && gmem_peer_status(world.peers[i].handle) != 1)
			return true;
	return false;
}

/*
 * All behave, and nothing fails any more. Who was not disconnected gets all that is shared:
 * by what wakes the program up, at the latest a timer.
 */
static void calm_down(void)
{
	bool acted = true;

	for (size_t i = 0; i < PEERS; i++)
		world.peers[i].manner = HONEST;
	for (unsigned n = 0; acted && n < 2000; n++) {
		acted = false;
		for (size_t i = 0; i < PEERS; i++) {
			world.peers[i].patience = 0;
			acted |= act(&world.peers[i]);
		}
		acted |= dispatch(0);
		if (!acted && is_incomplete())
			acted = dispatch(LONGEST_RETRY_MS);
	}
	CHECK(!acted);
	check_all();
	for (size_t i = 0; i < PEERS; i++) {
		struct peer *peer = &world.peers[i];

		CHECK(!peer->was_always_good || !peer->handle || is_connected(peer));
		if (!is_connected(peer))
			continue;
		CHECK(gmem_peer_status(peer->handle) == 1);
		for (uint64_t page = peer->from; page < peer->to; page++)
			CHECK(peer->may_use[page] ==
			      (world.regions[page / REGION_PAGES] && !world.is_private[page]));
	}
}

/* A refusal that came too late spoils nothing. */
static void convert_there_and_back(void)
{
	GMEM_OPTS(gmem_convert_opts, opts);
	uint64_t page = take() % CONVERTIBLE;
	bool was_private = world.is_private[page];

	if (!world.regions[page / REGION_PAGES])
		return;
	convert_range(page, 1, !was_private, &opts, false);
	check_all();
	convert_range(page, 1, was_private, &opts, false);
	check_all();
}

/* As many messages as there are, but for those who are in no hurry */
static void exchange(unsigned rounds)
{
	bool acted = true;

	for (unsigned n = 0; acted && n < 4 * rounds; n++) {
		acted = dispatch(0);
		for (size_t i = 0; i < PEERS; i++)
			acted |= act(&world.peers[i]);
	}
}

static void step(void)
{
	unsigned how = take();
	struct peer *peer = &world.peers[how >> 4 & (PEERS - 1)];

	switch (how % 16) {
	case 0:
		add_or_remove();
		break;
	case 1:
		change();
		break;
	case 2:
		if (peer->handle)
			remove_peer(peer);
		else
			add_peer(peer);
		break;
	case 3:
	case 4:
		set_manner(peer);
		break;
	case 5:
	case 6:
	case 7:
		act(peer);
		break;
	case 8:
		dispatch(0);
		break;
	case 9:
		exchange(how >> 4);
		break;
	case 10:
		if (how & 0x10)
			calm_down();
		break;
	default:
		convert();
	}
}

/* ---- the world ---- */

static void begin(void)
{
	GMEM_OPTS(gmem_request, private_request, .backings = { GMEM_BACKING_PRIVATE });
	GMEM_OPTS(gmem_request, host_request, .backings = { GMEM_BACKING_HOST });

	fake_boot("7.3-swp-t1");
	world.clock = world.timer_at = 0;
	world.is_lost = false;
	world.vm_fd = fake_new_vm();
	CHECK(gmem_vm_new(world.vm_fd, NULL, &world.vm) == 0);
	CHECK(gmem_plan_new(gmem_vm_caps(world.vm), &private_request, &world.private_plan) == 0);
	CHECK(gmem_plan_new(gmem_vm_caps(world.vm), &host_request, &world.host_plan) == 0);
	CHECK(gmem_view_new(world.vm, &world.view) == 0);
	world.memfd = memfd_create("fuzz", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	CHECK(world.memfd >= 0 && ftruncate(world.memfd, PAGES * PAGE) == 0);
	CHECK(fcntl(world.memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
	world.hva = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, world.memfd, 0);
	CHECK(world.hva != MAP_FAILED);
	CHECK(gmem_export_new(world.vm, NULL, &world.exporter) == 0);
	CHECK(gmem_export_add_memory(world.exporter, world.hva, PAGES * PAGE, world.memfd, 0) == 0);
	for (size_t i = 0; i < PEERS; i++)
		world.peers[i] = (struct peer){ .sock = -1 };
	for (unsigned i = 0; i < REGIONS; i++) {
		world.regions[i] = NULL;
		CHECK(add_region(i) == 0);
	}
}

static void end(void)
{
	uint64_t before = world.clock;

	gmem_export_free(world.exporter);
	CHECK(world.clock - before <= longest_wait());
	for (size_t i = 0; i < PEERS; i++)
		if (world.peers[i].sock >= 0)
			close(world.peers[i].sock);
	gmem_view_free(world.view);
	gmem_vm_free(world.vm);
	gmem_plan_free(world.private_plan);
	gmem_plan_free(world.host_plan);
	munmap(world.hva, PAGES * PAGE);
	close(world.memfd);
	fake_close(world.vm_fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	world.in = (struct fuzz_input){ data, size };
	begin();
	add_peer(&world.peers[0]);
	add_peer(&world.peers[1]);
	for (unsigned i = 0; i < MAX_STEPS && world.in.left && !world.is_lost; i++) {
		step();
		check_all();
	}
	if (!world.is_lost) {
		calm_down();
		convert_there_and_back();
		calm_down();
	}
	end();
	CHECK(fake_complaints() == 0);
	CHECK(fake_halt() == 0);
	return 0;
}
