/* SPDX-License-Identifier: MIT */
/* Prints the report as a table. The reasons contain the values, so these need no column. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "probe.h"
#include "text.h"

#define INDENT		2
#define GAP		2
#define ANSWER		7	/* "unknown" */
#define TITLE_MAX	30
#define REASON_MIN	24

/* The columns of a line */
struct layout {
	unsigned int title;	/* width of the first column */
	unsigned int reason;	/* position of the third column */
	unsigned int width;	/* width of the line */
	bool color;
};

const char *answer_name(uint32_t answer)
{
	switch (answer) {
	case GMEM_YES:
		return "yes";
	case GMEM_NO:
		return "no";
	default:
		return "unknown";
	}
}

static const char *answer_color(uint32_t answer, bool harms)
{
	switch (answer) {
	case GMEM_YES:
		return "\033[32m";
	case GMEM_NO:
		return harms ? "\033[31m" : "";
	default:
		return "\033[33m";
	}
}

/* A no to one of these is why guest_memfd cannot back guests; other noes harm nobody. */
static bool finding_harms(size_t cap)
{
	return cap == GMEM_CAP_KVM || cap == GMEM_CAP_USER_MEMORY2 || cap == GMEM_CAP_GUEST_MEMFD ||
	       cap == GMEM_CAP_CREATE || cap == GMEM_CAP_BIND;
}

static void print_spaces(unsigned int count)
{
	printf("%*s", (int)count, "");
}

/*
 * Prints @lead and @text as a paragraph whose lines all begin in column @indent. The
 * cursor is in that column already; afterwards it is on a new line.
 */
static void print_wrapped(const char *lead, const char *text, unsigned int indent,
			  unsigned int width)
{
	unsigned int column = indent + (unsigned int)strlen(lead);
	unsigned int word_columns;
	bool first = true;
	size_t size;

	fputs(lead, stdout);
	for (text += strspn(text, " "); *text; text += strspn(text, " ")) {
		size = strcspn(text, " ");
		word_columns = columns(text, size);

		if (!first && column + 1 + word_columns > width) {
			putchar('\n');
			print_spaces(indent);
			column = indent;
		} else if (!first) {
			putchar(' ');
			column++;
		}
		print_clean(text, size);
		column += word_columns;
		text += size;
		first = false;
	}
	putchar('\n');
}

static void measure(const struct report *report, struct layout *layout)
{
	unsigned int title;
	size_t i;

	layout->title = 0;
	for (i = 0; i < report->finding_count; i++) {
		title = columns(report->findings[i].title, strlen(report->findings[i].title));
		if (title > layout->title)
			layout->title = title;
	}
	if (layout->title > TITLE_MAX)
		layout->title = TITLE_MAX;

	layout->reason = INDENT + layout->title + GAP + ANSWER + GAP;
	if (layout->width < layout->reason + REASON_MIN)
		layout->width = layout->reason + REASON_MIN;
}

static void print_line(const struct layout *layout, const char *title, uint32_t answer,
		       bool harms, const char *reason, const char *remedy)
{
	unsigned int title_columns = columns(title, strlen(title));
	const char *color;

	print_spaces(INDENT);
	print_clean(title, strlen(title));
	if (title_columns > layout->title) {
		putchar('\n');
		print_spaces(INDENT);
		title_columns = 0;
	}
	print_spaces(layout->title - title_columns + GAP);

	color = layout->color ? answer_color(answer, harms) : "";
	printf("%s%s%s", color, answer_name(answer), *color ? "\033[0m" : "");

	print_spaces(ANSWER - (unsigned int)strlen(answer_name(answer)) + GAP);
	print_wrapped("", reason, layout->reason, layout->width);

	if (remedy) {
		print_spaces(layout->reason);
		print_wrapped("to change: ", remedy, layout->reason, layout->width);
	}
}

/* Prints the lines from @first up to @end (excluded), as far as the report has them. */
static void print_findings(const struct report *report, const struct layout *layout,
			   const char *heading, size_t first, size_t end)
{
	const char *remedy = NULL;
	size_t i;

	if (end > report->finding_count)
		end = report->finding_count;
	if (first >= end)
		return;

	printf("\n%s\n", heading);
	for (i = first; i < end; i++) {
		const struct gmem_finding *finding = &report->findings[i];

		bool is_told = remedy && finding->remedy && !strcmp(remedy, finding->remedy);

		/* Do not repeat a remedy: without KVM all lines have the same. */
		print_line(layout, finding->title, finding->answer, finding_harms(i),
			   finding->reason, is_told ? NULL : finding->remedy);
		remedy = finding->remedy;
	}
}

static const char *best_backing(const struct report *report)
{
	static const struct {
		const char *name;
		const char *sentence;
	} best[] = {
		{ "shared", "Shared guest_memfd can back guests here." },
		{ "private", "Private guest_memfd can back guests here." },
		{ "mapped", "The mapping of a guest_memfd (\"mapped\") is the best that "
			    "can back guests here." },
		{ "host", "Ordinary host memory (\"host\") is the best that can back "
			  "guests here." },
	};
	size_t i;

	for (i = 0; i < sizeof(best) / sizeof(best[0]); i++)
		if (find_backing(report, best[i].name)->answer == GMEM_YES)
			return best[i].sentence;
	return "Nothing that libgmem knows can back guests here.";
}

static void print_verdict(const struct report *report, unsigned int width)
{
	const struct gmem_finding *kvm = &report->findings[GMEM_CAP_KVM];
	const struct gmem_finding *guest = &report->findings[GMEM_CAP_GUEST_USES_FILE];

	if (report->needs_group) {
		printf("No permission to open " DEFAULT_KVM_PATH ". %s, then log in again:\n%s%s"
		       "  sudo usermod -aG ",
		       report->gives_group ? "Give it to a group and join that" : "Join its group",
		       report->makes_group ? "  sudo groupadd --system kvm\n" : "",
		       report->gives_group ? "  sudo chgrp kvm " DEFAULT_KVM_PATH " && sudo chmod g+rw "
					     DEFAULT_KVM_PATH "\n" : "");
		print_clean(report->group, strlen(report->group));
		printf(" $USER\n");
		return;
	}
	if (kvm->answer == GMEM_NO) {
		print_wrapped("No guest can run here: ", kvm->reason, 0, width);
		return;
	}
	if (!report->has_vm) {
		print_wrapped("", report->note ? report->note
			      : kvm->answer == GMEM_YES ? "Only a VM can tell what can back guests here."
							: kvm->reason, 0, width);
		return;
	}

	print_wrapped("", best_backing(report), 0, width);
	if (report->ran_guest && guest->answer == GMEM_UNKNOWN)
		print_wrapped("No guest has proved it: ", guest->reason, 0, width);
}

static void print_source(const struct report *report)
{
	char *type = vm_type_text(report->vm_type);

	printf("\nlibgmem %s, ", gmem_version());
	if (report->has_vm)
		printf("tried in a VM of type %s\n", type);
	else
		printf("this host without a VM\n");
	free(type);
}

void print_table(const struct report *report, unsigned int width, bool color)
{
	struct layout layout = { .width = width, .color = color };
	bool none = find_backing(report, "host")->answer == GMEM_NO;
	size_t i;

	measure(report, &layout);
	print_verdict(report, layout.width);
	print_source(report);
	print_findings(report, &layout, "Host", GMEM_CAP_ARCHITECTURE, GMEM_CAP_COUNT);
	/* What remains is that it cannot be asked. */
	if (report->needs_group)
		return;

	print_findings(report, &layout, "What KVM says", GMEM_CAP_KVM, GMEM_CAP_CREATE);
	print_findings(report, &layout, "What trying it proved", GMEM_CAP_CREATE,
		       GMEM_CAP_ARCHITECTURE);
	/* The library may be newer than this program. */
	print_findings(report, &layout, "More", GMEM_CAP_COUNT, SIZE_MAX);

	printf("\nWays of backing\n");
	for (i = 0; i < BACKING_COUNT; i++)
		print_line(&layout, report->backings[i].name, report->backings[i].answer, none,
			   report->backings[i].reason, NULL);
}
