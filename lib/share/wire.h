/* SPDX-License-Identifier: MIT */
/*
 * wire: messages between an export and an import, as docs/export-protocol.md
 * describes them.
 */
#ifndef GMEM_WIRE_H
#define GMEM_WIRE_H

#include <stddef.h>
#include <stdint.h>

#define GMEM_WIRE_BYTES 64

enum gmem_wire_type {
	GMEM_WIRE_HELLO = 1,
	GMEM_WIRE_MAP = 2,
	GMEM_WIRE_UNMAP = 3,
	GMEM_WIRE_REVOKE = 4,
	GMEM_WIRE_GRANT = 5,
	GMEM_WIRE_READY = 6,
	GMEM_WIRE_ANSWER = 7,
	GMEM_WIRE_MARK = 8,
	GMEM_WIRE_END_MARK = 9,
};

/* A right beside GMEM_RIGHT_*: the memory must not be touched before a GRANT. */
#define GMEM_WIRE_WITHHELD (1u << 15)

/* In the rights of an answer to HELLO: the importer takes MARK and END_MARK. */
#define GMEM_WIRE_TAKES_MARK (1u << 0)

struct gmem_message {
	uint32_t type;
	uint32_t sequence;
	uint32_t status;	/* ANSWER: 0, or a positive errno */
	uint32_t page_size;
	uint64_t id;
	uint64_t gpa;
	uint64_t size;
	uint64_t offset;
	uint64_t file_size;
	uint32_t rights;
	uint32_t backing;
};

const char *gmem_wire_name(uint32_t type);
void gmem_wire_encode(const struct gmem_message *message, uint8_t bytes[GMEM_WIRE_BYTES]);
/* Returns -EPROTO, with a sentence, for a message that breaks the protocol. */
int gmem_wire_decode(const uint8_t *bytes, size_t size, struct gmem_message *ret);

/* Check that @fd is an AF_UNIX socket of type SOCK_SEQPACKET. */
int gmem_wire_check_socket(int fd);
/*
 * @passed: fd to send with the message, or -1. Returns 0 or -errno without a sentence;
 * -EAGAIN: the socket has no room.
 */
int gmem_wire_send(int sock, const struct gmem_message *message, int passed);
/*
 * Returns 1, 0 if no message is there now, -EPIPE if none will come, -EPROTO for a bad one.
 * @ret_fd: the fd that came with the message, now the caller's, or -1: of a message "map" or
 * "mark" it may be lost.
 */
int gmem_wire_receive(int sock, struct gmem_message *ret, int *ret_fd);

#endif
