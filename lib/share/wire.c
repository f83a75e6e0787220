/* SPDX-License-Identifier: MIT */
/*
 * All messages have the same size and layout, little-endian. Each type has a list of the
 * fields it uses; the others must be zero, so that a later version can use them.
 */
#include "share/wire.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

#include "gmem.h"
#include "base/check.h"
#include "base/error.h"
#include "base/macros.h"
#include "os/sys.h"
#include "region/peer_marks.h"

#define MAGIC	0x4d454d47	/* "GMEM" */
#define VERSION	1

struct layout {
	uint32_t magic;
	uint16_t version;
	uint16_t type;
	uint32_t sequence;
	uint32_t status;
	uint64_t id;
	uint64_t gpa;
	uint64_t size;
	uint64_t offset;
	uint64_t file_size;
	uint32_t page_size;
	uint16_t rights;
	uint16_t backing;
};
_Static_assert(sizeof(struct layout) == GMEM_WIRE_BYTES, "a message");

#define MAX_ERRNO 4095
#define CHUNK (UINT64_C(1) << GMEM_PEER_CHUNK_SHIFT)

enum {
	HAS_STATUS = 1 << 0,
	HAS_ID = 1 << 1,
	HAS_RANGE = 1 << 2,
	HAS_FILE = 1 << 3,
	HAS_PAGE_SIZE = 1 << 4,
	HAS_RIGHTS = 1 << 5,
	HAS_BACKING = 1 << 6,
};

static const struct {
	const char *name;
	unsigned int has;
} types[] = {
	[GMEM_WIRE_HELLO] = { "hello", HAS_PAGE_SIZE },
	[GMEM_WIRE_MAP] = { "map", HAS_ID | HAS_RANGE | HAS_FILE | HAS_PAGE_SIZE | HAS_RIGHTS | HAS_BACKING },
	[GMEM_WIRE_UNMAP] = { "unmap", HAS_ID },
	[GMEM_WIRE_REVOKE] = { "revoke", HAS_ID | HAS_RANGE },
	[GMEM_WIRE_GRANT] = { "grant", HAS_ID | HAS_RANGE },
	[GMEM_WIRE_READY] = { "ready", 0 },
	[GMEM_WIRE_ANSWER] = { "answer", HAS_STATUS | HAS_RIGHTS },
	[GMEM_WIRE_MARK] = { "mark", HAS_RANGE | HAS_FILE | HAS_PAGE_SIZE },
	[GMEM_WIRE_END_MARK] = { "end mark", 0 },
};

const char *gmem_wire_name(uint32_t type)
{
	return type < GMEM_ARRAY_SIZE(types) && types[type].name ? types[type].name : "unknown";
}

void gmem_wire_encode(const struct gmem_message *message, uint8_t bytes[GMEM_WIRE_BYTES])
{
	const struct layout layout = {
		.magic = htole32(MAGIC),
		.version = htole16(VERSION),
		.type = htole16((uint16_t)message->type),
		.sequence = htole32(message->sequence),
		.status = htole32(message->status),
		.id = htole64(message->id),
		.gpa = htole64(message->gpa),
		.size = htole64(message->size),
		.offset = htole64(message->offset),
		.file_size = htole64(message->file_size),
		.page_size = htole32(message->page_size),
		.rights = htole16((uint16_t)message->rights),
		.backing = htole16((uint16_t)message->backing),
	};

	memcpy(bytes, &layout, sizeof(layout));
}

static int check_head(const struct layout *layout)
{
	if (le32toh(layout->magic) != MAGIC)
		return gmem_fail(-EPROTO, "a message begins with 0x%" PRIx32 ", not 0x%x",
				 le32toh(layout->magic), MAGIC);
	if (le16toh(layout->version) != VERSION)
		return gmem_fail(-EPROTO, "a message of version %u, not %u", le16toh(layout->version),
				 VERSION);
	if (le16toh(layout->type) >= GMEM_ARRAY_SIZE(types) || !types[le16toh(layout->type)].name)
		return gmem_fail(-EPROTO, "a message of type %u", le16toh(layout->type));
	return 0;
}

/* Check that all fields the type does not use are zero. */
static bool is_plain(const struct gmem_message *message)
{
	unsigned int has = types[message->type].has;

	return (has & HAS_STATUS || !message->status) && (has & HAS_ID || !message->id) &&
	       (has & HAS_RANGE || (!message->gpa && !message->size)) &&
	       (has & HAS_FILE || (!message->offset && !message->file_size)) &&
	       (has & HAS_RIGHTS || !message->rights) && (has & HAS_BACKING || !message->backing) &&
	       (has & HAS_PAGE_SIZE || !message->page_size);
}

static int check_range(const struct gmem_message *message)
{
	unsigned int has = types[message->type].has;
	int err = 0;

	if (has & HAS_RANGE)
		err = gmem_check_range_within("gpa", message->gpa, message->size, GMEM_GPA_END,
					      "the last guest address");
	if (!err && message->type == GMEM_WIRE_MAP)
		err = gmem_check_range_within("offset", message->offset, message->size,
					      message->file_size, "the end of the file");
	/* The sentence is the one of the check that failed. */
	return err ? -EPROTO : 0;
}

/* Bytes for pages come first, and those for chunks of 2 MiB at the offset. */
static int check_marks(const struct gmem_message *message)
{
	uint64_t pages = message->page_size ? message->size / message->page_size : 0;

	if (message->gpa || message->page_size > CHUNK ||
	    message->size & (CHUNK - 1))
		return gmem_fail(-EPROTO, "marks for 0x%" PRIx64 " bytes at gpa 0x%" PRIx64 " in pages of 0x%"
				 PRIx32, message->size, message->gpa, message->page_size);
	if (message->offset < pages || message->offset > message->file_size ||
	    message->file_size - message->offset < message->size / CHUNK)
		return gmem_fail(-EPROTO, "marks for 0x%" PRIx64 " bytes at offset 0x%" PRIx64 " of 0x%"
				 PRIx64, message->size, message->offset, message->file_size);
	return 0;
}

static int check_message(const struct gmem_message *message)
{
	const uint32_t rights = GMEM_RIGHT_READ | GMEM_RIGHT_WRITE | GMEM_WIRE_WITHHELD;
	unsigned int has = types[message->type].has;
	const char *name = types[message->type].name;

	if (!is_plain(message))
		return gmem_fail(-EPROTO, "a message \"%s\" has fields that are not its own", name);
	if (has & HAS_ID && !message->id)
		return gmem_fail(-EPROTO, "a message \"%s\" has no id", name);
	if (has & HAS_STATUS && message->status > MAX_ERRNO)
		return gmem_fail(-EPROTO, "status %" PRIu32 " is no errno", message->status);
	if (has & HAS_PAGE_SIZE &&
	    (!message->page_size || message->page_size & (message->page_size - 1)))
		return gmem_fail(-EPROTO, "page size 0x%" PRIx32 " is no power of two",
				 message->page_size);
	if (message->type == GMEM_WIRE_MARK && check_marks(message))
		return -EPROTO;
	if (has & HAS_BACKING && (!(message->rights & GMEM_RIGHT_READ) || message->rights & ~rights))
		return gmem_fail(-EPROTO, "rights 0x%" PRIx32, message->rights);
	if (has & HAS_BACKING && !gmem_backing_name(message->backing))
		return gmem_fail(-EPROTO, "backing %" PRIu32, message->backing);
	return check_range(message);
}

int gmem_wire_decode(const uint8_t *bytes, size_t size, struct gmem_message *ret)
{
	struct layout layout;
	int err;

	if (size != sizeof(layout))
		return gmem_fail(-EPROTO, "a message of %zu bytes, not %zu", size, sizeof(layout));

	memcpy(&layout, bytes, sizeof(layout));
	err = check_head(&layout);
	if (err)
		return err;

	*ret = (struct gmem_message){
		.type = le16toh(layout.type),
		.sequence = le32toh(layout.sequence),
		.status = le32toh(layout.status),
		.id = le64toh(layout.id),
		.gpa = le64toh(layout.gpa),
		.size = le64toh(layout.size),
		.offset = le64toh(layout.offset),
		.file_size = le64toh(layout.file_size),
		.page_size = le32toh(layout.page_size),
		.rights = le16toh(layout.rights),
		.backing = le16toh(layout.backing),
	};
	return check_message(ret);
}

/* ---- sockets ---- */

int gmem_wire_check_socket(int fd)
{
	int family = 0, type = 0, err;

	err = gmem_sys_socket_kind(fd, &family, &type);
	if (err)
		return gmem_fail(err, err == -ENOTSOCK || err == -EBADF ? "fd %d is no socket: %s" :
				 "getsockopt(2) does not tell what socket fd %d is: %s", fd, gmem_errno_name(err));
	if (family != AF_UNIX || type != SOCK_SEQPACKET)
		return gmem_fail(-EINVAL, "fd %d is a socket of family %d and type %d, not AF_UNIX, %d, "
				 "and SOCK_SEQPACKET, %d", fd, family, type, AF_UNIX, SOCK_SEQPACKET);
	return 0;
}

int gmem_wire_send(int sock, const struct gmem_message *message, int passed)
{
	uint8_t bytes[GMEM_WIRE_BYTES];

	gmem_wire_encode(message, bytes);
	return gmem_sys_send(sock, bytes, sizeof(bytes), passed);
}

/* Whether a file comes with it; it can get lost, if this process has no number left for it. */
static bool has_fd(const struct gmem_message *message)
{
	return message->type == GMEM_WIRE_MAP || message->type == GMEM_WIRE_MARK;
}

static int check_fds(const struct gmem_message *message, const struct gmem_sys_fds *fds)
{
	unsigned int wanted = has_fd(message);

	if (fds->unknown)
		return gmem_fail(-EPROTO, "a message \"%s\" came with something that is no file",
				 types[message->type].name);
	if (fds->count == wanted && !fds->lost)
		return 0;
	if (wanted && fds->count <= 1 && fds->lost)
		return 0;
	return gmem_fail(-EPROTO, "a message \"%s\" came with %u fds%s, not %u",
			 types[message->type].name, fds->count, fds->lost ? " and more" : "", wanted);
}

int gmem_wire_receive(int sock, struct gmem_message *ret, int *ret_fd)
{
	struct gmem_sys_fds fds;
	/* One byte more, to recognise a message that is too long */
	uint8_t bytes[GMEM_WIRE_BYTES + 1];
	int n, err;

	n = gmem_sys_receive(sock, bytes, sizeof(bytes), &fds);
	/* The kernel is short of memory: the message stays where it is. */
	if (n == -EAGAIN || n == -ENOMEM || n == -ENOBUFS)
		return 0;

	/* An empty packet looks like the end, but can carry fds: they are closed below. */
	if (n <= 0)
		err = gmem_fail(n == 0 || n == -ECONNRESET ? -EPIPE : n,
				"the other side has closed the connection, socket %d", sock);
	else
		err = gmem_wire_decode(bytes, (size_t)n, ret);
	if (!err)
		err = check_fds(ret, &fds);
	/* Of several only one arrived? Then nothing did. */
	if (fds.first >= 0 && (err || fds.lost)) {
		gmem_sys_close(fds.first);
		fds.first = -1;
	}
	if (err)
		return err;
	*ret_fd = fds.first;
	return 1;
}
