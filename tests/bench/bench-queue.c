/* SPDX-License-Identifier: MIT */
/* bench-queue: what a device pays for a request of its virtqueue. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gmem.h>

#include "bench.h"
#include "layout.h"
#include "peer/peer.h"

#define REGIONS		32
#define QUEUE_SIZE	256
#define REQUEST_SIZE	512

static const char usage[] =
	"usage: bench-queue [ROUNDS]\n"
	"\n"
	"Serves a split virtqueue of 256 entries in a VM of 32 regions with ordinary memory.\n"
	"A request is three loads (the index of the available ring, its entry, a descriptor of\n"
	"16 bytes), a copy of 512 bytes, and two stores (an entry of the used ring, its index).\n"
	"\n"
	"Columns: ns of CPU time for one request, median (least - most) of ROUNDS rounds, at\n"
	"least 5, by default 21, in which all sides take turns:\n"
	"\n"
	"  libgmem      each access finds its memory and could survive a page that is gone\n"
	"  held         the same between gmem_view_begin() and gmem_view_end(), one pair a\n"
	"               request\n"
	"  vm-memory    load(), read_obj(), read_slice(), write_obj(), store()\n"
	"  virtio-queue pop_descriptor_chain(), read_slice(), add_used()\n"
	"\n"
	"Goals: held is 0.3 of either.\n"
	"\n"
	"Exit status: 0, 1 if something failed, 77 if this host cannot run it.\n";

enum { LIBGMEM, HELD, PEER, PEER_QUEUE, SIDES };

static const struct peer_functions *peer_functions;

struct descriptor {
	uint64_t gpa;
	uint32_t size;
	uint16_t flags;
	uint16_t next;
};

struct used {
	uint32_t head;
	uint32_t size;
};

/* What each side has of its own: how far its device is. The rings are the same memory. */
struct device {
	struct peer_virtqueue queue;
	struct peer_queue *peer_queue;
	uint16_t *avail_index;		/* where the driver writes it */
	struct gmem_view *view;
	const struct peer *peer;
	char buf[REQUEST_SIZE];
};

/* Returns 1 if there was a request, 0 if not, or -errno. */
static inline int serve_one(struct gmem_view *view, struct peer_virtqueue *queue, void *buf)
{
	uint16_t at = queue->next % queue->size, head = 0;
	struct descriptor descriptor;
	struct used used = { 0 };
	uint64_t avail = 0;
	int err;

	err = gmem_view_load(view, queue->avail + 2, 2, GMEM_ACQUIRE, &avail);
	if (err || avail == queue->next)
		return err;

	err = gmem_view_read(view, queue->avail + 4 + 2 * at, &head, sizeof(head), NULL);
	if (err || head >= queue->size)
		return err ? err : -1;
	err = gmem_view_read(view, queue->descriptors + 16 * head, &descriptor, sizeof(descriptor), NULL);
	if (err || descriptor.size > REQUEST_SIZE)
		return err ? err : -1;
	err = gmem_view_read(view, descriptor.gpa, buf, descriptor.size, NULL);
	if (err)
		return err;

	used.head = head;
	err = gmem_view_write(view, queue->used + 4 + 8 * at, &used, sizeof(used), NULL);
	if (!err)
		err = gmem_view_store(view, queue->used + 2, 2, GMEM_RELEASE, ++queue->next);
	return err ? err : 1;
}

static void serve(void *data)
{
	struct device *device = data;
	int err;

	*device->avail_index = (uint16_t)(device->queue.next + QUEUE_SIZE);
	do
		err = serve_one(device->view, &device->queue, device->buf);
	while (err > 0);
	bench_gmem_must(err, "a request");
}

static void serve_held(void *data)
{
	struct device *device = data;
	int err;

	*device->avail_index = (uint16_t)(device->queue.next + QUEUE_SIZE);
	do {
		gmem_view_begin(device->view);
		err = serve_one(device->view, &device->queue, device->buf);
		gmem_view_end(device->view);
	} while (err > 0);
	bench_gmem_must(err, "a request");
}

static void serve_peer(void *data)
{
	struct device *device = data;

	*device->avail_index = (uint16_t)(device->queue.next + QUEUE_SIZE);
	peer_functions->serve(device->peer, &device->queue, device->buf);
}

/* The queue counts for itself: all that was available is done. */
static void serve_peer_queue(void *data)
{
	struct device *device = data;

	device->queue.next = (uint16_t)(device->queue.next + QUEUE_SIZE);
	*device->avail_index = device->queue.next;
	peer_functions->serve_queue(device->peer, device->peer_queue, device->buf);
}

/* The rings in the first region, the buffers in the others: each once, in random order */
static void fill_queue(const struct layout *layout, struct peer_virtqueue *queue)
{
	const struct peer_range *rings = &layout->ranges[0];
	struct descriptor *descriptors = rings->hva;
	uint16_t *avail = (void *)((char *)rings->hva + 8192);

	*queue = (struct peer_virtqueue){
		.descriptors = rings->gpa, .avail = rings->gpa + 8192, .used = rings->gpa + 16384,
		.size = QUEUE_SIZE,
	};
	for (uint16_t i = 0; i < QUEUE_SIZE; i++) {
		const struct peer_range *range = &layout->ranges[1 + bench_random(REGIONS - 1)];
		uint64_t buffer = i * UINT64_C(4096) + bench_random(8) * REQUEST_SIZE;

		descriptors[i] = (struct descriptor){ .gpa = range->gpa + buffer, .size = REQUEST_SIZE };
		memset((char *)range->hva + buffer, i, REQUEST_SIZE);
		avail[2 + i] = (uint16_t)(i * 77 % QUEUE_SIZE);
	}
}

static void print_row(const struct bench *bench)
{
	static const char *const names[] = { "libgmem", "held", "vm-memory", "virtio-queue",
					     "held/vm-memory", "held/virtio-queue", "libgmem/vm-memory" };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		bench_print_column(names[i]);
	printf("\n");
	for (size_t i = 0; i < bench->count; i++)
		bench_print(bench_time(bench, i));
	bench_row_figure(bench_time(bench, HELD), "ns");
	if (bench->count > PEER) {
		bench_print_against("vm-memory", bench_ratio(bench, HELD, PEER), 0.3);
		bench_print_against("vm-memory, virtio-queue", bench_ratio(bench, HELD, PEER_QUEUE), 0.3);
		bench_print_ratio(bench_ratio(bench, LIBGMEM, PEER), 0);
	}
	printf("\n");
}

static void bench_requests(struct bench *bench, const struct layout *layout, struct gmem_view *view,
			   const struct peer *peer)
{
	static struct device devices[SIDES];
	static void (*const run[SIDES])(void *) = { serve, serve_held, serve_peer, serve_peer_queue };

	bench->count = peer ? SIDES : PEER;
	bench->operations = QUEUE_SIZE;
	for (size_t i = 0; i < bench->count; i++) {
		devices[i].view = view;
		devices[i].peer = peer;
		fill_queue(layout, &devices[i].queue);
		devices[i].avail_index = (void *)((char *)layout->ranges[0].hva + 8194);
		bench->sides[i].run = run[i];
		bench->sides[i].data[0] = &devices[i];
	}
	if (peer)
		devices[PEER_QUEUE].peer_queue = peer_functions->queue_new(&devices[PEER_QUEUE].queue);

	bench_row("access/queue");
	bench_run(bench);
	print_row(bench);
	if (peer)
		peer_functions->queue_free(devices[PEER_QUEUE].peer_queue);
}

int main(int argc, char **argv)
{
	static struct bench bench;
	struct peer *peer = NULL;
	struct gmem_view *view;
	struct layout layout;

	bench.rounds = bench_arguments(argc, argv, usage, 21);
	bench.threads = 1;
	bench.sample_us = 1000;
	printf("libgmem %s, %zu rounds\n", gmem_version(), bench.rounds);
	peer_functions = peer_load();
	layout_new(&layout, REGIONS, false);
	bench_gmem_must(gmem_recovery_enable(), "gmem_recovery_enable");
	bench_gmem_must(gmem_view_new(layout.vm, &view), "gmem_view_new");
	if (peer_functions)
		peer = peer_functions->new(layout.ranges, layout.count);

	bench_requests(&bench, &layout, view, peer);
	bench_print_goals();

	if (peer)
		peer_functions->free(peer);
	gmem_view_free(view);
	gmem_recovery_disable();
	layout_free(&layout);
	return EXIT_SUCCESS;
}
