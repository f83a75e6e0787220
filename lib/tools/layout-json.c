/* SPDX-License-Identifier: MIT */
/* Prints a layout as JSON: gmem-show(1) documents the sums, gmem-dump(5) the rest. */
#include <inttypes.h>
#include <stdio.h>

#include "layout.h"
#include "text.h"

#define SCHEMA 1

static void print_number(const char *name, uint64_t value)
{
	printf("\"%s\":%" PRIu64, name, value);
}

static void print_number_or_null(const char *name, uint64_t value)
{
	if (value == UNKNOWN)
		printf("\"%s\":null", name);
	else
		print_number(name, value);
}

static void print_bool(const char *name, bool value)
{
	printf("\"%s\":%s", name, value ? "true" : "false");
}

static void print_string_member(const char *name, const char *value)
{
	printf("\"%s\":", name);
	print_json_string(value);
}

static void print_nodes(const struct piece *piece)
{
	printf("\"nodes\":[");
	for (size_t i = 0; i < piece->node_count; i++)
		printf("%s{\"node\":%" PRIu64 ",\"pages\":%" PRIu64 "}", i ? "," : "",
		       piece->nodes[i].node, piece->nodes[i].pages);
	putchar(']');
}

static void print_piece(const struct piece *piece)
{
	putchar('{');
	print_number("gpa", piece->gpa);
	putchar(',');
	print_number("size", piece->size);
	putchar(',');
	print_number_or_null("private", piece->private);
	putchar(',');
	print_number_or_null("shared_resident", piece->resident[SHARED]);
	putchar(',');
	print_number_or_null("private_resident", piece->resident[PRIVATE]);
	putchar(',');
	print_nodes(piece);
	putchar('}');
}

static void print_file(const struct region *region)
{
	if (!region->has_file) {
		printf("\"file\":null");
		return;
	}
	printf("\"file\":{");
	print_number("fd", region->fd);
	putchar(',');
	print_number("size", region->file_size);
	putchar(',');
	print_number("offset", region->file_offset);
	putchar(',');
	print_number("create_flags", region->create_flags);
	putchar('}');
}

static void print_region(const struct region *region)
{
	putchar('{');
	print_number("gpa", region->gpa);
	putchar(',');
	print_number("size", region->size);
	putchar(',');
	print_string_member("backing", region->backing);
	putchar(',');
	print_number_or_null("slot", region->slot);
	putchar(',');
	if (region->has_kind) {
		print_string_member("kind", region->kind);
		putchar(',');
		print_number("identity", region->identity);
		putchar(',');
	}
	print_bool("lost", region->lost);
	putchar(',');
	print_bool("readonly", region->readonly);
	putchar(',');
	print_bool("dirty_log", region->dirty_log);
	putchar(',');
	print_file(region);
	putchar(',');
	print_number_or_null("hva", region->hva);
	printf(",\n \"ranges\":[");
	for (size_t i = 0; i < region->piece_count; i++) {
		printf("%s\n  ", i ? "," : "");
		print_piece(&region->pieces[i]);
	}
	printf("]}");
}

static void print_regions(const char *name, const struct region *regions, size_t count)
{
	printf("\"%s\":[", name);
	for (size_t i = 0; i < count; i++) {
		printf("%s\n", i ? "," : "");
		print_region(&regions[i]);
	}
	putchar(']');
}

static void print_leases(const struct layout *layout)
{
	printf("\"leases\":[");
	for (size_t i = 0; i < layout->lease_count; i++) {
		printf("%s\n{", i ? "," : "");
		print_number("gpa", layout->leases[i].gpa);
		putchar(',');
		print_number("size", layout->leases[i].size);
		putchar(',');
		print_string_member("holder", layout->leases[i].holder);
		putchar('}');
	}
	putchar(']');
}

static void print_sums(const struct layout *layout)
{
	struct totals totals;

	add_up(layout->regions, layout->region_count, &totals);
	printf("\"sums\":{");
	print_number("regions", layout->region_count);
	putchar(',');
	print_number("memory", totals.memory);
	putchar(',');
	print_number("devices", totals.devices);
	putchar(',');
	print_number("private", totals.private);
	putchar(',');
	print_number("shared_resident", totals.resident[SHARED]);
	putchar(',');
	print_number("private_resident", totals.resident[PRIVATE]);
	putchar(',');
	print_number("unknown", totals.unknown);
	putchar('}');
}

void print_layout_json(const struct layout *layout)
{
	printf("{\"schema\":%d,", SCHEMA);
	print_sums(layout);
	printf(",\n\"dump\":{\"gmem_dump\":1,");
	print_string_member("library", layout->library);
	putchar(',');
	print_string_member("name", layout->name);
	printf(",\n");
	print_string_member("architecture", layout->architecture);
	putchar(',');
	print_number("page_size", layout->page_size);
	putchar(',');
	print_number_or_null("address_bits", layout->address_bits);
	putchar(',');
	print_number("memslots", layout->memslots);
	if (layout->address_space != UNKNOWN) {
		putchar(',');
		print_number("address_space", layout->address_space);
	}
	printf(",\n");
	print_regions("regions", layout->regions, layout->region_count);
	printf(",\n");
	print_regions("stuck", layout->stuck, layout->stuck_count);
	printf(",\n");
	print_leases(layout);
	printf("}}\n");
}
