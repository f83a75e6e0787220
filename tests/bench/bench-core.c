/* SPDX-License-Identifier: MIT */
/*
 * bench-core: what conversions, readers and changes of the layout cost, and what they wait
 * for, by the size of the VM and by what goes on beside them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "core.h"

static const char usage[] =
	"usage: bench-core [PARTS [ROUNDS]]\n"
	"\n"
	"PARTS are letters of the list below, by default all of them. KVM is played, so that its\n"
	"part is nothing, or as long as a line says; memory is real. Only part g needs /dev/kvm.\n"
	"Times without \"CPU\" are elapsed, and those beside other threads depend on the number\n"
	"of processors and on what else the machine does: compare them within a run. Figures\n"
	"of parts a, b, f and g are medians of ROUNDS rounds, by default 5.\n"
	"\n"
	"  a  a page converted, by the size of the VM, against the calls that discard its other side\n"
	"  b  the same with 10000 leases elsewhere, against none\n"
	"  c  a region split beside threads that convert without pause for 10 s, against none\n"
	"  d  1, 32 and 1024 threads that convert the same page\n"
	"  e  what a conversion waits for, against nothing\n"
	"  f  a reader, quiet and beside a thread that converts\n"
	"  g  30000 memslots added and removed, 32764 freed with their VM, against ioctls by hand\n"
	"\n"
	"Part e needs 4 GiB of memory.\n"
	"\n"
	"Exit status: 0, 1 if something failed, 77 if this host cannot run part g.\n";

static const struct part {
	char letter;
	void (*run)(size_t rounds);
} parts[] = {
	{ 'a', core_conversions_by_size },
	{ 'b', core_leases_elsewhere },
	{ 'c', core_storms },
	{ 'd', core_one_page },
	{ 'e', core_waits },
	{ 'f', core_readers },
	{ 'g', core_many_slots },
};

int main(int argc, char **argv)
{
	const char *wanted = argc > 1 ? argv[1] : "abcdefg";
	size_t rounds = argc > 2 ? strtoul(argv[2], NULL, 10) : bench_quick() ? 2 : 5;

	if (argc > 3 || rounds < 1 || rounds > BENCH_ROUNDS || wanted[strspn(wanted, "abcdefg")]) {
		fputs(usage, argc == 2 && strcmp(wanted, "--help") == 0 ? stdout : stderr);
		return argc == 2 && strcmp(wanted, "--help") == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
	}

	printf("libgmem %s, %zu rounds\n", gmem_version(), rounds);
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
		if (strchr(wanted, parts[i].letter)) {
			printf("%c: ", parts[i].letter);
			parts[i].run(rounds);
		}
	bench_print_goals();
	return EXIT_SUCCESS;
}
