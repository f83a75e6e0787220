/* SPDX-License-Identifier: MIT */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "peer.h"

/* Where get-peer puts it */
static void cache_directory(char *buf, size_t size)
{
	const char *own = getenv("LIBGMEM_CACHE"), *xdg = getenv("XDG_CACHE_HOME");
	const char *home = getenv("HOME");

	if (own && *own)
		snprintf(buf, size, "%s/peer", own);
	else if (xdg && *xdg)
		snprintf(buf, size, "%s/libgmem/peer", xdg);
	else
		snprintf(buf, size, "%s/.cache/libgmem/peer", home ? home : "");
}

static void print_version(const char *directory)
{
	char path[4096], line[200] = "of unknown version\n";
	FILE *file;

	snprintf(path, sizeof(path), "%s/version", directory);
	file = fopen(path, "r");
	if (file) {
		if (!fgets(line, sizeof(line), file))
			line[0] = '\0';
		fclose(file);
	}
	printf("peer: %s", line);
}

/* The size of @slot is that of any pointer to function. */
static int find(void *library, const char *name, void *slot)
{
	void *symbol = dlsym(library, name);

	memcpy(slot, &symbol, sizeof(symbol));
	return symbol ? 0 : -1;
}

static int find_all(void *library, struct peer_functions *functions)
{
	int err = 0;

	err |= find(library, "peer_new", &functions->new);
	err |= find(library, "peer_free", &functions->free);
	err |= find(library, "peer_translate", &functions->translate);
	err |= find(library, "peer_translate_atomic", &functions->translate_atomic);
	err |= find(library, "peer_read_slice", &functions->read_slice);
	err |= find(library, "peer_write_slice", &functions->write_slice);
	err |= find(library, "peer_read_obj", &functions->read_obj);
	err |= find(library, "peer_write_obj", &functions->write_obj);
	err |= find(library, "peer_load", &functions->load);
	err |= find(library, "peer_store", &functions->store);
	err |= find(library, "peer_serve", &functions->serve);
	err |= find(library, "peer_serve_queue", &functions->serve_queue);
	err |= find(library, "peer_queue_new", &functions->queue_new);
	err |= find(library, "peer_queue_free", &functions->queue_free);
	err |= find(library, "peer_read_from", &functions->read_from);
	err |= find(library, "peer_change", &functions->change);
	return err;
}

const struct peer_functions *peer_load(void)
{
	static struct peer_functions functions;
	char directory[4000], path[4096];
	void *library;

	cache_directory(directory, sizeof(directory));
	snprintf(path, sizeof(path), "%s/libpeer.so", directory);
	library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!library || find_all(library, &functions)) {
		printf("No peer to compare with, tests/bench/get-peer builds it: %s.\n", dlerror());
		return NULL;
	}

	print_version(directory);
	return &functions;
}
