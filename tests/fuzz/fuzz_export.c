/* SPDX-License-Identifier: MIT */
/*
 * A hostile process at either end of the socket between an export and an
 * import, on the scripted kernel.
 *
 * To an import anything is sent: whole messages with small numbers, which get
 * far, and raw bytes, with any number of fds of several kinds. What it accepts
 * is kept in a list, and every page is compared with that: what is mapped,
 * which page of the file it is, and what may not be reached.
 *
 * To an export any answers are sent while its VM's regions come and go and are
 * converted. It must give what is private to nobody, and never get stuck.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fake.h"
#include "fuzz.h"
#include "os/sys.h"
#include "share/wire.h"

#define PAGE		((uint64_t)4096)
#define FILE_PAGES	16
#define MODEL_PAGES	64
#define MOST		6
#define MAX_STEPS	64

/* ---- files: page n of each begins with n ---- */

static int new_file(unsigned kind)
{
	int fd;

	if (kind == 3)
		return open("/dev/null", O_RDWR | O_CLOEXEC);

	fd = memfd_create("fuzz", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	CHECK(fd >= 0 && ftruncate(fd, FILE_PAGES * PAGE) == 0);
	for (uint64_t i = 0; i < FILE_PAGES; i++)
		CHECK(pwrite(fd, &i, sizeof(i), (off_t)(i * PAGE)) == sizeof(i));
	if (kind != 1)
		CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL |
						     (kind == 2 ? F_SEAL_WRITE : 0)) == 0);
	return fd;
}

/* ---- an import, and what it should have ---- */

struct extent {
	uint64_t id;
	uint64_t gpa;
	uint64_t size;
	uint64_t offset;
};

struct model {
	struct extent extents[MOST];
	size_t count;
	bool granted[MODEL_PAGES];
};

static void set_granted(struct model *model, uint64_t gpa, uint64_t size, bool granted)
{
	for (uint64_t page = 0; page < MODEL_PAGES; page++)
		if (page * PAGE >= gpa && page * PAGE - gpa < size)
			model->granted[page] = granted;
}

static void model_accepts(struct model *model, const struct gmem_message *message)
{
	size_t i;

	switch (message->type) {
	case GMEM_WIRE_MAP:
		CHECK(model->count < MOST);
		model->extents[model->count++] = (struct extent){ message->id, message->gpa,
								  message->size, message->offset };
		set_granted(model, message->gpa, message->size,
			    !(message->rights & GMEM_WIRE_WITHHELD));
		break;
	case GMEM_WIRE_UNMAP:
		for (i = 0; i < model->count && model->extents[i].id != message->id; i++)
			;
		CHECK(i < model->count);
		model->extents[i] = model->extents[--model->count];
		break;
	case GMEM_WIRE_REVOKE:
	case GMEM_WIRE_GRANT:
		set_granted(model, message->gpa, message->size, message->type == GMEM_WIRE_GRANT);
		break;
	default:
		break;
	}
}

static const struct extent *extent_at(const struct model *model, uint64_t gpa)
{
	for (size_t i = 0; i < model->count; i++)
		if (gpa >= model->extents[i].gpa && gpa - model->extents[i].gpa < model->extents[i].size)
			return &model->extents[i];
	return NULL;
}

static void compare(const struct model *model, struct gmem_import *import, struct gmem_view *view)
{
	struct gmem_extent extents[MOST];

	CHECK(gmem_import_table(import, extents, MOST) == (int)model->count);
	for (uint64_t page = 0; page < MODEL_PAGES; page++) {
		const struct extent *extent = extent_at(model, page * PAGE);
		uint64_t value = 0;
		int err = gmem_view_load(view, page * PAGE, 8, GMEM_RELAXED, &value);

		if (!extent)
			CHECK(err == -ENOENT || err == -ESTALE);
		else if (!model->granted[page])
			CHECK(err == -EACCES);
		else
			CHECK(err == 0 &&
			     value == (page * PAGE - extent->gpa + extent->offset) / PAGE);
	}
}

/* A message with small numbers; most are refused all the same. */
static size_t make_message(struct fuzz_input *in, uint32_t sequence, uint8_t bytes[GMEM_WIRE_BYTES])
{
	static const uint32_t rights[] = { 3, 3, 1, 3 | GMEM_WIRE_WITHHELD, 3, 2, 0, 7 };
	struct gmem_message message = { .type = fuzz_take(in) % 9, .sequence = sequence };
	uint8_t odd;

	if (message.type == GMEM_WIRE_MAP || message.type == GMEM_WIRE_HELLO)
		message.page_size = 4096;
	if (message.type >= GMEM_WIRE_MAP && message.type <= GMEM_WIRE_GRANT)
		message.id = fuzz_take(in) % 8;
	if (message.type == GMEM_WIRE_MAP || message.type == GMEM_WIRE_REVOKE ||
	    message.type == GMEM_WIRE_GRANT) {
		message.gpa = fuzz_take(in) % MODEL_PAGES * PAGE;
		message.size = fuzz_take(in) % (FILE_PAGES + 2) * PAGE;
	}
	if (message.type == GMEM_WIRE_MAP) {
		message.offset = fuzz_take(in) % FILE_PAGES * PAGE;
		message.file_size = FILE_PAGES * PAGE;
		message.rights = rights[fuzz_take(in) % 8];
		message.backing = 1 + fuzz_take(in) % 5;
	}
	gmem_wire_encode(&message, bytes);

	/* with at most one mistake */
	odd = fuzz_take(in);
	if (odd & 0x80)
		bytes[odd % GMEM_WIRE_BYTES] ^= fuzz_take(in);
	return GMEM_WIRE_BYTES;
}

static size_t make_raw(struct fuzz_input *in, uint8_t *bytes)
{
	size_t size = fuzz_take(in) % (GMEM_WIRE_BYTES + 8);

	for (size_t i = 0; i < size; i++)
		bytes[i] = fuzz_take(in);
	return size;
}

/* Returns false once the import has had enough. */
static bool feed(struct fuzz_input *in, int sock, struct gmem_import *import, struct model *model,
		 uint32_t sequence)
{
	uint8_t bytes[GMEM_WIRE_BYTES + 8], how = fuzz_take(in);
	struct gmem_message message, answer;
	int fd = new_file(how & 3), none, ret;
	unsigned fds = how >> 2 & 7;
	size_t size;

	size = how & 0x80 ? make_raw(in, bytes) : make_message(in, sequence, bytes);
	/* mostly as many as there should be */
	if (how & 0x40 || fds == 7)
		fds = size == GMEM_WIRE_BYTES && bytes[6] == GMEM_WIRE_MAP;
	fake_send_packet(sock, bytes, size, fds, fd);
	close(fd);

	ret = gmem_import_dispatch(import);
	if (ret < 0) {
		CHECK(ret == -EPROTO || ret == -EPIPE);
		return false;
	}
	CHECK(gmem_wire_decode(bytes, size, &message) == 0);
	CHECK(gmem_wire_receive(sock, &answer, &none) == 1);
	CHECK(answer.type == GMEM_WIRE_ANSWER && answer.sequence == message.sequence);
	if (!answer.status)
		model_accepts(model, &message);
	return true;
}

static void fuzz_import(struct fuzz_input *in)
{
	GMEM_OPTS(gmem_import_opts, opts, .max_extents = MOST, .max_bytes = 40 * PAGE,
		  .flags = fuzz_take(in) & 1 ? GMEM_IMPORT_UNSEALED : 0);
	struct gmem_message hello = { .type = GMEM_WIRE_HELLO, .page_size = 4096 }, answer;
	struct model model = { .count = 0 };
	struct gmem_import *import = NULL;
	struct gmem_view *view = NULL;
	int sockets[2], none;
	uint32_t i;

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) == 0);
	CHECK(gmem_import_new(sockets[1], &opts, &import) == 0);
	close(sockets[1]);
	CHECK(gmem_import_view_new(import, &view) == 0);
	if (fuzz_take(in) % 16) {
		CHECK(gmem_wire_send(sockets[0], &hello, -1) == 0);
		CHECK(gmem_import_dispatch(import) == 0);
		CHECK(gmem_wire_receive(sockets[0], &answer, &none) == 1);
	}

	for (i = 1; i < MAX_STEPS && in->left && feed(in, sockets[0], import, &model, i); i++)
		compare(&model, import, view);
	compare(&model, import, view);
	gmem_view_free(view);
	gmem_import_free(import);
	close(sockets[0]);
}

/* ---- an export, and answers that need not be any ---- */

#define REGION_PAGES 8

struct exporting {
	struct gmem_vm *vm;
	struct gmem_plan *plan;
	struct gmem_export *exporter;
	struct gmem_peer *peer;
	struct gmem_region *regions[2];
	char *hva;
	int vm_fd;
	int memfd;
	int sockets[2];
	uint32_t last;			/* message that was received */
	bool is_private[2 * REGION_PAGES];
};

static void add_region(struct exporting *e, unsigned which)
{
	GMEM_OPTS(gmem_region_opts, opts, .plan = e->plan, .flags = GMEM_REGION_HVA,
		  .hva = e->hva + which * REGION_PAGES * PAGE);

	CHECK(gmem_region_add(e->vm, which * REGION_PAGES * PAGE, REGION_PAGES * PAGE, &opts,
			     &e->regions[which]) == 0);
	memset(&e->is_private[which * REGION_PAGES], 0, REGION_PAGES * sizeof(bool));
}

static void begin_export(struct exporting *e)
{
	GMEM_OPTS(gmem_request, request, .backings = { GMEM_BACKING_PRIVATE });
	GMEM_OPTS(gmem_peer_opts, opts, .flags = GMEM_PEER_CUT_OFF | GMEM_PEER_WHOLE_FILES,
		  .wait_ms = 1);

	memset(e, 0, sizeof(*e));
	e->vm_fd = fake_new_vm();
	CHECK(gmem_vm_new(e->vm_fd, NULL, &e->vm) == 0);
	CHECK(gmem_plan_new(gmem_vm_caps(e->vm), &request, &e->plan) == 0);
	e->memfd = new_file(0);
	e->hva = mmap(NULL, FILE_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, e->memfd, 0);
	CHECK(e->hva != MAP_FAILED);
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, e->sockets) == 0);
	CHECK(gmem_export_new(e->vm, NULL, &e->exporter) == 0);
	CHECK(gmem_export_add_memory(e->exporter, e->hva, FILE_PAGES * PAGE, e->memfd, 0) == 0);
	add_region(e, 0);
	CHECK(gmem_peer_add(e->exporter, e->sockets[0], &opts, &e->peer) == 0);
	close(e->sockets[0]);
}

static void end_export(struct exporting *e)
{
	gmem_export_free(e->exporter);
	gmem_vm_free(e->vm);
	gmem_plan_free(e->plan);
	munmap(e->hva, FILE_PAGES * PAGE);
	close(e->memfd);
	close(e->sockets[1]);
	fake_close(e->vm_fd);
}

/* Every message must agree with the state of the VM's memory. */
static void read_all(struct exporting *e)
{
	struct gmem_message message;
	int fd;

	while (gmem_wire_receive(e->sockets[1], &message, &fd) == 1) {
		e->last = message.sequence;
		if (fd >= 0)
			gmem_sys_close(fd);
		if (message.type == GMEM_WIRE_MAP)
			CHECK(message.rights & GMEM_WIRE_WITHHELD);
		for (uint64_t page = 0; message.type == GMEM_WIRE_GRANT && page < 2 * REGION_PAGES;
		     page++)
			CHECK(!e->is_private[page] || page * PAGE < message.gpa ||
			     page * PAGE - message.gpa >= message.size);
	}
}

static void answer(struct exporting *e, struct fuzz_input *in)
{
	uint8_t how = fuzz_take(in), bytes[GMEM_WIRE_BYTES + 8];
	struct gmem_message message = { .type = GMEM_WIRE_ANSWER, .sequence = e->last };
	size_t size = GMEM_WIRE_BYTES;

	read_all(e);
	message.sequence = e->last;
	if (how % 8 == 1)
		message.status = fuzz_take(in);
	if (how % 8 == 2)
		message.sequence += fuzz_take(in);
	gmem_wire_encode(&message, bytes);
	if (how % 8 == 3)
		bytes[fuzz_take(in) % GMEM_WIRE_BYTES] ^= fuzz_take(in);
	if (how % 8 == 4)
		size = make_raw(in, bytes);
	fake_send_packet(e->sockets[1], bytes, size, how % 8 == 5 ? how >> 5 : 0, e->memfd);
}

static void change_region(struct exporting *e, unsigned which)
{
	if (!e->regions[which]) {
		add_region(e, which);
		return;
	}
	CHECK(gmem_region_remove(e->regions[which]) == 0);
	e->regions[which] = NULL;
}

static void convert(struct exporting *e, struct fuzz_input *in)
{
	uint64_t page = fuzz_take(in) % REGION_PAGES, pages = 1 + fuzz_take(in) % (REGION_PAGES - page);
	bool to_private = fuzz_take(in) & 1;

	if (!e->regions[0])
		return;
	/* Before: from the moment it is asked for, nobody is to be given it. */
	for (uint64_t i = page; to_private && i < page + pages; i++)
		e->is_private[i] = true;
	read_all(e);
	for (uint64_t i = page; !to_private && i < page + pages; i++)
		e->is_private[i] = false;
	CHECK(gmem_vm_convert(e->vm, page * PAGE, pages * PAGE,
			     to_private ? GMEM_STATE_PRIVATE : GMEM_STATE_SHARED, NULL, NULL) == 0);
}

static void fuzz_export(struct fuzz_input *in)
{
	struct exporting e;
	int status;

	begin_export(&e);
	for (unsigned i = 0; i < MAX_STEPS && in->left; i++) {
		uint8_t what = fuzz_take(in) % 16;

		if (what == 0)
			change_region(&e, fuzz_take(in) & 1);
		else if (what == 1)
			convert(&e, in);
		else
			answer(&e, in);
		CHECK(gmem_export_dispatch(e.exporter) == 0);
		read_all(&e);
		status = gmem_peer_status(e.peer);
		CHECK(status <= 1 && status > -4096);
	}
	end_export(&e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input in = { data, size };

	fake_boot("7.3-swp-t1");
	if (fuzz_take(&in) & 1)
		fuzz_import(&in);
	else
		fuzz_export(&in);
	CHECK(fake_complaints() == 0);
	CHECK(fake_halt() == 0);
	return 0;
}
