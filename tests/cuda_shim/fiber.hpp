// A stack of its own to which a thread of the CPU can switch, without the system call that swapcontext makes where the
// registers' names are known. Tells AddressSanitizer, where it is there.
#pragma once

#include <cstddef>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
asm(".text\n.type cuda_shim_switch, @function\ncuda_shim_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size cuda_shim_switch, . - cuda_shim_switch\n");
#elif defined(__aarch64__)
asm(".text\n.type cuda_shim_switch, %function\ncuda_shim_switch:\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n"
    ".size cuda_shim_switch, . - cuda_shim_switch\n");
#else
#include <ucontext.h>
#define WITH_UCONTEXT 1
#endif
#ifndef WITH_UCONTEXT
extern "C" void cuda_shim_switch(void** from, void* to);
#endif

struct Fiber {
#ifdef WITH_UCONTEXT
    ucontext_t registers;
#else
    void* stack_pointer;
#endif
    const void* stack;
    size_t size;
    void* fake;  // AddressSanitizer's own

    bool holds(const void* at) const {
        const auto distance = static_cast<const char*>(at) - static_cast<const char*>(stack);
        return distance >= 0 && distance < static_cast<std::ptrdiff_t>(size);
    }

    // Where `start` will run, which calls `arrived` first and never returns.
    void prepare(void* at, size_t bytes, void (*start)()) {
        stack = at, size = bytes, fake = nullptr;
#ifdef WITH_ASAN
        __asan_unpoison_memory_region(at, bytes);
#endif
#ifdef WITH_UCONTEXT
        getcontext(&registers);
        registers.uc_stack.ss_sp = at;
        registers.uc_stack.ss_size = bytes;
        registers.uc_link = nullptr;
        makecontext(&registers, start, 0);
#else
        auto* top = reinterpret_cast<void**>(static_cast<char*>(at) + bytes);
#if defined(__x86_64__)
        // Six registers, where to go, and nowhere to return to: the stack is then as after a call.
        constexpr int SAVED = 8, LINK = 6;
#else
        constexpr int SAVED = 20, LINK = 11;
#endif
        top -= SAVED;
        std::memset(top, 0, SAVED * sizeof(void*));
        top[LINK] = reinterpret_cast<void*>(start);
        stack_pointer = top;
#endif
    }

    // From here to `other`; `for_good` if nobody switches back.
    void switch_to(Fiber& other, bool for_good = false) {
#ifdef WITH_ASAN
        __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, other.stack, other.size);
#else
        static_cast<void>(for_good);
#endif
#ifdef WITH_UCONTEXT
        swapcontext(&registers, &other.registers);
#else
        cuda_shim_switch(&stack_pointer, other.stack_pointer);
#endif
#ifdef WITH_ASAN
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    }

    // To be called first on a new stack, with the fiber that switched to it.
    static void arrived([[maybe_unused]] Fiber& from) {
#ifdef WITH_ASAN
        __sanitizer_finish_switch_fiber(nullptr, &from.stack, &from.size);
#endif
    }
};
