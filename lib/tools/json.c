/* SPDX-License-Identifier: MIT */
/* Prints the report as JSON. gmem-probe(1) documents the schema: only add to it. */
#include <inttypes.h>
#include <stdio.h>

#include "probe.h"
#include "text.h"

#define SCHEMA 1

static void print_member(const char *name, const char *value)
{
	printf("\"%s\":", name);
	print_json_string(value);
}

static void print_finding(const struct gmem_finding *finding)
{
	print_member("name", finding->name);
	putchar(',');
	print_member("title", finding->title);
	putchar(',');
	print_member("answer", answer_name(finding->answer));
	if (finding->has_value)
		printf(",\"value\":%" PRId64 ",", finding->value);
	else
		printf(",\"value\":null,");
	print_member("reason", finding->reason);
	putchar(',');
	print_member("remedy", finding->remedy);
}

static const char *attributes_name(uint32_t attributes)
{
	switch (attributes) {
	case GMEM_ATTRIBUTES_NONE:
		return "none";
	case GMEM_ATTRIBUTES_VM:
		return "vm";
	default:
		return "file";
	}
}

static void print_backing(const struct backing *backing)
{
	print_member("name", backing->name);
	putchar(',');
	print_member("answer", answer_name(backing->answer));
	if (backing->answer == GMEM_YES)
		printf(",\"create_flags\":%" PRIu64 ",\"needs_region2\":%s,"
		       "\"attributes\":\"%s\",",
		       backing->create_flags, backing->needs_region2 ? "true" : "false",
		       attributes_name(backing->attributes));
	else
		printf(",\"create_flags\":null,\"needs_region2\":null,\"attributes\":null,");
	print_member("reason", backing->reason);
}

void print_json(const struct report *report)
{
	size_t i;

	printf("{\"schema\":%d,", SCHEMA);
	print_member("version", gmem_version());
	if (report->has_vm)
		printf(",\"vm\":{\"type\":%" PRIu64 "},", report->vm_type);
	else
		printf(",\"vm\":null,");
	print_member("note", report->note);

	printf(",\n\"findings\":[");
	for (i = 0; i < report->finding_count; i++) {
		printf("%s\n{", i ? "," : "");
		print_finding(&report->findings[i]);
		putchar('}');
	}

	printf("],\n\"backings\":[");
	for (i = 0; i < BACKING_COUNT; i++) {
		printf("%s\n{", i ? "," : "");
		print_backing(&report->backings[i]);
		putchar('}');
	}
	printf("]}\n");
}
