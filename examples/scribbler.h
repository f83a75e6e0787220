/* SPDX-License-Identifier: MIT */
/*
 * The plain KVM part of migrate, for x86_64 and arm64: instructions that count as those
 * of counter.h do, and store each number in one more page, the next one each time.
 */
#ifndef SCRIBBLER_H
#define SCRIBBLER_H

#include "counter.h"

#define SCRIBBLED_PAGE	4096
#define SCRIBBLED_PAGES	4096	/* the number n goes to page n % SCRIBBLED_PAGES */

#if defined(__x86_64__)

static const uint8_t scribbling[] = {		/* 32 bits, without paging */
	0x40,					/* inc  eax			*/
	0x89, 0x03,				/* mov  [ebx], eax		*/
	0x89, 0xc7,				/* mov  edi, eax		*/
	0x81, 0xe7, 0xff, 0x0f, 0x00, 0x00,	/* and  edi, 4095		*/
	0xc1, 0xe7, 0x0c,			/* shl  edi, 12			*/
	0x89, 0x04, 0x3e,			/* mov  [esi + edi], eax	*/
	0xf4,					/* hlt				*/
	0xeb, 0xec,				/* jmp  to the inc		*/
};

static void make_flat(struct kvm_segment *segment)
{
	segment->base = 0;
	segment->limit = UINT32_MAX;
	segment->g = 1;
	segment->db = 1;
}

/* There must be no memory at @nowhere. */
static int start_scribbling(int vm, int vcpu, uint64_t code, uint64_t count, uint64_t pages,
			    uint64_t nowhere)
{
	struct registers registers;

	(void)nowhere;
	if (get_registers(vcpu, &registers) < 0)
		return -1;
	registers.sregs.cr0 |= 1;
	registers.sregs.cs.selector = 8;
	make_flat(&registers.sregs.cs);
	make_flat(&registers.sregs.ds);
	make_flat(&registers.sregs.ss);
	registers.regs = (struct kvm_regs){ .rip = code, .rbx = count, .rsi = pages, .rflags = 1 << 1 };
	return set_registers(vm, vcpu, &registers);
}

#else

static const uint32_t scribbling[] = {		/* with the MMU off */
	0x11000400,				/* add  w0, w0, #1		*/
	0xb9000020,				/* str  w0, [x1]		*/
	0x12002c03,				/* and  w3, w0, #4095		*/
	0x53144c63,				/* lsl  w3, w3, #12		*/
	0xb8236880,				/* str  w0, [x4, x3]		*/
	0xb9000040,				/* str  w0, [x2]		*/
	0x17fffffa,				/* b    to the add		*/
};

/* There must be no memory at @nowhere. */
static int start_scribbling(int vm, int vcpu, uint64_t code, uint64_t count, uint64_t pages,
			    uint64_t nowhere)
{
	const struct registers registers = { .x = { 0, count, nowhere, 0, pages }, .pc = code };

	return set_registers(vm, vcpu, &registers);
}

#endif

#endif
