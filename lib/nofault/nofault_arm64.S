/* SPDX-License-Identifier: MIT */
/*
 * Copy and fill for the fast engine, with instructions that may fault: see nofault.h.
 *
 * Accesses go from low to high addresses, and none leaves the range. Therefore the first
 * fault is on the lowest page that cannot be reached, or at most one loop iteration past
 * it, and nofault.c does the bytes up to that page.
 */
#if defined(__aarch64__)

/* One instruction that may fault. If it does, it goes on at \fixup, with the fault in x9. */
.macro access fixup:req, insn:vararg
.Lat\@:
	\insn
	.pushsection gmem_recovery, "aR"
	.balign	4
	.long	.Lat\@ - .
	.long	\fixup - .
	.popsection
.endm

.macro function name:req
	.text
	.balign	64
	.globl	\name
	.hidden	\name
	.type	\name, %function
\name:
	.cfi_startproc
	hint	34			/* bti c */
.endm

.macro end_function name:req
	.cfi_endproc
	.size	\name, . - \name
.endm

/*
 * struct gmem_nofault_stop gmem_nofault_fast_copy(void *dst, const void *src, size_t size)
 *
 * x0: dst, x1: src, x2: size. Returns x0: done, x1: fault.
 * Later x4: end of src, x5: end of dst.
 *
 * Up to 64 bytes are loaded from both ends, which may overlap in the middle, before
 * anything is stored. So a fault among the loads leaves nothing stored.
 */
function gmem_nofault_fast_copy
	add	x4, x1, x2
	add	x5, x0, x2
	cmp	x2, #16
	b.lo	.Lcopy_below_16
	cmp	x2, #32
	b.hi	.Lcopy_above_32

	access	.Lcopy_nothing, ldr	q0, [x1]
	access	.Lcopy_nothing, ldur	q1, [x4, #-16]
	access	.Lcopy_nothing, str	q0, [x0]
	access	.Lcopy_nothing, stur	q1, [x5, #-16]
	b	.Lcopy_all

.Lcopy_below_16:
	tbz	x2, #3, .Lcopy_below_8
	access	.Lcopy_nothing, ldr	x6, [x1]
	access	.Lcopy_nothing, ldur	x7, [x4, #-8]
	access	.Lcopy_nothing, str	x6, [x0]
	access	.Lcopy_nothing, stur	x7, [x5, #-8]
	b	.Lcopy_all

.Lcopy_below_8:
	tbz	x2, #2, .Lcopy_below_4
	access	.Lcopy_nothing, ldr	w6, [x1]
	access	.Lcopy_nothing, ldur	w7, [x4, #-4]
	access	.Lcopy_nothing, str	w6, [x0]
	access	.Lcopy_nothing, stur	w7, [x5, #-4]
	b	.Lcopy_all

.Lcopy_below_4:
	cbz	x2, .Lcopy_all
	/* The first byte of 1 or 3, and the last two of 2 or 3: a number of two is whole. */
	access	.Lcopy_nothing, ldrb	w6, [x1]
	cmp	x2, #2
	b.lo	.Lcopy_first
	access	.Lcopy_nothing, ldurh	w7, [x4, #-2]
	b.eq	.Lcopy_last_two
	access	.Lcopy_nothing, strb	w6, [x0]
.Lcopy_last_two:
	access	.Lcopy_nothing, sturh	w7, [x5, #-2]
	b	.Lcopy_all
.Lcopy_first:
	access	.Lcopy_nothing, strb	w6, [x0]
	b	.Lcopy_all

.Lcopy_above_32:
	cmp	x2, #64
	b.hi	.Lcopy_above_64
	access	.Lcopy_nothing, ldp	q0, q1, [x1]
	access	.Lcopy_nothing, ldp	q2, q3, [x4, #-32]
	access	.Lcopy_nothing, stp	q0, q1, [x0]
	access	.Lcopy_nothing, stp	q2, q3, [x5, #-32]
	b	.Lcopy_all

	/* x3: position in dst, x4: the last 64 bytes of src, x5: the last 64 bytes of dst */
.Lcopy_above_64:
	mov	x3, x0
	sub	x4, x4, #64
	sub	x5, x5, #64
.Lcopy_loop:
	access	.Lcopy_some, ldp	q0, q1, [x1]
	access	.Lcopy_some, ldp	q2, q3, [x1, #32]
	access	.Lcopy_some, stp	q0, q1, [x3]
	access	.Lcopy_some, stp	q2, q3, [x3, #32]
	add	x1, x1, #64
	add	x3, x3, #64
	cmp	x3, x5
	b.lo	.Lcopy_loop

	/* Copy the last 64 bytes, which may overlap those that are done. */
	access	.Lcopy_some, ldp	q0, q1, [x4]
	access	.Lcopy_some, ldp	q2, q3, [x4, #32]
	access	.Lcopy_some, stp	q0, q1, [x5]
	access	.Lcopy_some, stp	q2, q3, [x5, #32]

.Lcopy_all:
	mov	x0, x2
	mov	x1, #0
	ret
.Lcopy_some:
	sub	x0, x3, x0
	mov	x1, x9
	ret
.Lcopy_nothing:
	mov	x0, #0
	mov	x1, x9
	ret
end_function gmem_nofault_fast_copy

/*
 * struct gmem_nofault_stop gmem_nofault_fast_fill(void *dst, int byte, size_t size)
 *
 * x0: dst, w1: byte, x2: size. Returns x0: done, x1: fault.
 * Later x3: position in dst, x5: end of dst.
 */
function gmem_nofault_fast_fill
	dup	v0.16b, w1
	mov	x3, x0
	add	x5, x0, x2
	cmp	x2, #16
	b.lo	.Lfill_below_16
	subs	x4, x2, #64
	b.ls	.Lfill_last_64
	add	x4, x4, x0
.Lfill_loop:
	access	.Lfill_some, stp	q0, q0, [x3]
	access	.Lfill_some, stp	q0, q0, [x3, #32]
	add	x3, x3, #64
	cmp	x3, x4
	b.lo	.Lfill_loop

	/* 1 to 64 bytes are left, and dst has at least 16 in all. */
.Lfill_last_64:
	sub	x4, x5, #16
.Lfill_quads:
	cmp	x3, x4
	b.hs	.Lfill_last_16
	access	.Lfill_some, str	q0, [x3]
	add	x3, x3, #16
	b	.Lfill_quads
.Lfill_last_16:
	access	.Lfill_some, str	q0, [x4]
	b	.Lfill_all

.Lfill_below_16:
	tbz	x2, #3, .Lfill_below_8
	access	.Lfill_some, str	d0, [x0]
	access	.Lfill_some, stur	d0, [x5, #-8]
	b	.Lfill_all
.Lfill_below_8:
	tbz	x2, #2, .Lfill_below_4
	access	.Lfill_some, str	s0, [x0]
	access	.Lfill_some, stur	s0, [x5, #-4]
	b	.Lfill_all
.Lfill_below_4:
	cbz	x2, .Lfill_all
	cmp	x2, #2
	b.eq	.Lfill_last_two
	access	.Lfill_some, strb	w1, [x0]
	b.lo	.Lfill_all
.Lfill_last_two:
	access	.Lfill_some, stur	h0, [x5, #-2]

.Lfill_all:
	mov	x0, x2
	mov	x1, #0
	ret
.Lfill_some:
	sub	x0, x3, x0
	mov	x1, x9
	ret
end_function gmem_nofault_fast_fill

/* Say that "bti c" is where BTI needs it: one object without this note disables BTI for all. */
#if defined(__ARM_FEATURE_BTI_DEFAULT)
	.section .note.gnu.property, "a"
	.balign	8
	.long	4, 16, 5
	.asciz	"GNU"
	.long	0xc0000000, 4, 1, 0
#endif

#endif

	.section .note.GNU-stack, "", %progbits
