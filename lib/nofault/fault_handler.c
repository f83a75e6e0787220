/* SPDX-License-Identifier: MIT */
/*
 * The process-level half of touching memory that may not be there: a SIGBUS
 * handler that knows the instructions of ours that may fault, and passes on
 * everything else.
 *
 * Someone may install a handler on top of ours and pass on to us what is not
 * theirs; then we must neither take ours away (theirs would go with it) nor
 * install it a second time on top of theirs (the two would pass a signal on to
 * each other for ever). Therefore there are several handlers, called layers,
 * that differ only in what they pass on to. What a layer passes on to never
 * changes once it was installed, so it always leads to what was there before
 * it: there are no circles, and nothing to free or to lock in the handler.
 */
#include "nofault/fault_handler.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <ucontext.h>

#include "base/error.h"
#include "base/lock.h"
#include "nofault/nofault.h"
#include "os/sys.h"

/* ---- the table: where the program goes on ---- */

/* The linker puts these around the section; weak for programs that touch nothing. */
extern const struct gmem_recovery_entry __start_gmem_recovery[]
	__attribute__((weak, visibility("hidden")));
extern const struct gmem_recovery_entry __stop_gmem_recovery[]
	__attribute__((weak, visibility("hidden")));

static uintptr_t absolute(const int32_t *relative)
{
	return (uintptr_t)relative + (uintptr_t)(intptr_t)*relative;
}

/*
 * In the order the linker found them. A search that takes 100 ns does not
 * matter where the fault itself takes microseconds.
 */
static bool find_fixup(uintptr_t pc, uintptr_t *ret)
{
	const struct gmem_recovery_entry *entry;

	for (entry = __start_gmem_recovery; entry < __stop_gmem_recovery; entry++) {
		if (absolute(&entry->insn) == pc) {
			*ret = absolute(&entry->fixup);
			return true;
		}
	}
	return false;
}

static bool recover(const siginfo_t *info, ucontext_t *context)
{
	uint64_t err = info->si_code == BUS_MCEERR_AR ? EHWPOISON : EFAULT;
	uint64_t fault = gmem_nofault_page((uintptr_t)info->si_addr) | err;
	uintptr_t fixup;

#if defined(__x86_64__)
	greg_t *regs = context->uc_mcontext.gregs;

	if (!find_fixup((uintptr_t)regs[REG_RIP], &fixup))
		return false;
	regs[REG_R11] = (greg_t)fault;
	regs[REG_RIP] = (greg_t)fixup;
#elif defined(__aarch64__)
	mcontext_t *machine = &context->uc_mcontext;

	if (!find_fixup((uintptr_t)machine->pc, &fixup))
		return false;
	machine->regs[9] = fault;
	machine->pc = fixup;
#endif
	return true;
}

/*
 * The signal is about the very instruction it interrupted. Not so one sent by a
 * process, or the early news of a page somewhere that went bad
 * (BUS_MCEERR_AO): that can meet an instruction of ours by chance, and is for
 * whoever handled SIGBUS before.
 */
static bool is_fault(const siginfo_t *info)
{
	return info->si_code > 0 && info->si_code != BUS_MCEERR_AO;
}

/* ---- layers: what the signal is passed on to ---- */

struct layer {
	struct sigaction below;	/* written once, before @used */
	atomic_bool used;
	atomic_bool spent;	/* @below was for one signal (SA_RESETHAND), and it came */
};

/* One is the rule, two are rare; each costs embedders 160 bytes. */
#define LAYERS 4

static struct layer layers[LAYERS];

/*
 * As the kernel does it for SIG_DFL: it kills, with a core that shows the fault
 * itself. The signal is queued again, blocked until this handler returns, and
 * then delivered before the faulting instruction can run, and perhaps not fault
 * any more.
 */
static void die(int signal, siginfo_t *info, ucontext_t *context)
{
	struct sigaction standard = { .sa_handler = SIG_DFL };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signal);
	gmem_sys_sigmask(SIG_BLOCK, &set, NULL);
	sigdelset(&context->uc_sigmask, signal);
	gmem_sys_sigaction(signal, &standard, NULL);

	/* Refused by a seccomp filter, say: a fault comes again by itself. */
	if (gmem_sys_requeue_signal(signal, info) && !is_fault(info))
		gmem_sys_raise(signal);
}

/*
 * Call the handler below nearly as the kernel would. Its own mask holds while
 * it runs, but SIGBUS itself stays unblocked even without SA_NODEFER, so that
 * it, too, may touch what is not there.
 */
static void pass_on(struct layer *layer, int signal, siginfo_t *info, ucontext_t *context)
{
	const struct sigaction *below = &layer->below;
	sigset_t mask = below->sa_mask, old;
	bool none = below->sa_handler == SIG_DFL;

	if (!none && (below->sa_flags & (int)SA_RESETHAND))
		none = atomic_exchange(&layer->spent, true);
	/* Ignoring a fault would mean to have it again, for ever. */
	if (none || (below->sa_handler == SIG_IGN && is_fault(info))) {
		die(signal, info, context);
		return;
	}
	if (below->sa_handler == SIG_IGN)
		return;

	sigdelset(&mask, signal);
	gmem_sys_sigmask(SIG_BLOCK, &mask, &old);
	if (below->sa_flags & SA_SIGINFO)
		below->sa_sigaction(signal, info, context);
	else
		below->sa_handler(signal);
	gmem_sys_sigmask(SIG_SETMASK, &old, NULL);
}

static void handle(struct layer *layer, int signal, siginfo_t *info, void *context)
{
	int saved_errno = errno;

	if (!is_fault(info) || !recover(info, context)) {
		/* Pairs with the release in take_layer(). */
		if (atomic_load_explicit(&layer->used, memory_order_acquire))
			pass_on(layer, signal, info, context);
	}
	errno = saved_errno;
}

#define HANDLER(n)                                                        \
	static void handler_##n(int signal, siginfo_t *info, void *context) \
	{                                                                 \
		handle(&layers[n], signal, info, context);                \
	}

HANDLER(0)
HANDLER(1)
HANDLER(2)
HANDLER(3)

static void (*const handlers[LAYERS])(int, siginfo_t *, void *) = {
	handler_0, handler_1, handler_2, handler_3,
};

/* NULL: not ours */
static struct layer *layer_of(const struct sigaction *action)
{
	unsigned int i;

	for (i = 0; i < LAYERS; i++) {
		if ((action->sa_flags & SA_SIGINFO) && action->sa_sigaction == handlers[i])
			return &layers[i];
	}
	return NULL;
}

static bool is_same(const struct sigaction *a, const struct sigaction *b)
{
	int signal;

	for (signal = 1; signal < NSIG; signal++) {
		if (sigismember(&a->sa_mask, signal) != sigismember(&b->sa_mask, signal))
			return false;
	}
	return a->sa_handler == b->sa_handler && a->sa_flags == b->sa_flags;
}

/* A layer that passes on to @below; NULL: all are used for other things */
static struct layer *take_layer(const struct sigaction *below)
{
	struct layer *layer;

	for (layer = layers; layer < layers + LAYERS; layer++) {
		if (!atomic_load_explicit(&layer->used, memory_order_relaxed)) {
			layer->below = *below;
			/* Pairs with the acquire in handle(). */
			atomic_store_explicit(&layer->used, true, memory_order_release);
			return layer;
		}
		if (is_same(&layer->below, below)) {
			atomic_store(&layer->spent, false);
			return layer;
		}
	}
	return NULL;
}

/* ---- enable, disable ---- */

static struct gmem_lock lock = GMEM_LOCK_INIT(GMEM_RANK_HANDLER);
static atomic_uint users;

static int install(void)
{
	struct sigaction ours = { .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK };
	struct sigaction now = { .sa_flags = 0 }, replaced = { .sa_flags = 0 };
	struct layer *layer;
	int err;

	for (;;) {
		err = gmem_sys_sigaction(SIGBUS, NULL, &now);
		if (err)
			return gmem_fail(err, "recovery: SIGBUS has no handlers here: %s",
					 gmem_errno_name(err));
		if (layer_of(&now))
			return 0;

		layer = take_layer(&now);
		if (!layer)
			return gmem_fail(-EBUSY, "recovery: %d handlers of SIGBUS were installed "
					 "over libgmem's and may still lead to it", LAYERS);

		/* A signal that interrupted no call must not begin to. */
		ours.sa_sigaction = handlers[layer - layers];
		ours.sa_flags &= ~SA_RESTART;
		if ((now.sa_flags & SA_RESTART) || now.sa_handler == SIG_IGN)
			ours.sa_flags |= SA_RESTART;

		err = gmem_sys_sigaction(SIGBUS, &ours, &replaced);
		if (err)
			return gmem_fail(err, "recovery: SIGBUS cannot be handled here: %s",
					 gmem_errno_name(err));
		if (is_same(&replaced, &now))
			return 0;

		/* Someone else's came in between: put it back and start over. */
		gmem_sys_sigaction(SIGBUS, &replaced, NULL);
	}
}

GMEM_API int gmem_recovery_enable(void)
{
	int err;

	gmem_nofault_choose(GMEM_NOFAULT_WIDEST);

	gmem_lock_take(&lock);
	err = install();
	if (!err)
		atomic_fetch_add(&users, 1);
	gmem_lock_drop(&lock);
	return err;
}

GMEM_API void gmem_recovery_disable(void)
{
	struct sigaction standard = { .sa_handler = SIG_DFL };
	struct sigaction now = { .sa_flags = 0 };
	struct layer *layer = NULL;

	gmem_lock_take(&lock);
	if (atomic_load(&users) > 0 && atomic_fetch_sub(&users, 1) == 1 &&
	    gmem_sys_sigaction(SIGBUS, NULL, &now) == 0)
		layer = layer_of(&now);
	/* Under another one's it stays, and passes on. */
	if (layer)
		gmem_sys_sigaction(SIGBUS,
				   atomic_load(&layer->spent) ? &standard : &layer->below, NULL);
	gmem_lock_drop(&lock);
}

bool gmem_nofault_is_recoverable(void)
{
	struct sigaction now = { .sa_flags = 0 };

	if (!atomic_load(&users) || gmem_sys_sigmask_has(SIGBUS) ||
	    gmem_sys_sigaction(SIGBUS, NULL, &now))
		return false;

	/* Someone else's handler is taken to pass on; no handler cannot. */
	return (now.sa_flags & SA_SIGINFO) ||
	       (now.sa_handler != SIG_DFL && now.sa_handler != SIG_IGN);
}
