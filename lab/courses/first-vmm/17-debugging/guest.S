// Chapter 17: a guest in long mode. It prints a greeting for the name at 0x8000, a text with a zero byte at its end.
//
// It has a mistake: it dies before it has printed everything. Find it.
.intel_syntax noprefix
.code64
.globl _start
_start:
    // RBX counts from -4 to 0: the texts are found backwards from the end of the table.
    mov rbx, -4
next_text:
    mov rdi, [texts_end + rbx * 8]
    call print
    inc rbx
    jnz next_text
    hlt

// Prints the text at RDI. RBX and RDX keep their values.
print:
    push rdx
    push rbx
    call length
    mov rbx, rax
    mov dx, 0xe9
    test rbx, rbx
    jz printed
next:
    mov al, [rdi]
    out dx, al
    inc rdi
    dec rbx
    jnz next
    //{
printed:
    pop rbx
    pop rdx
    //= pop rbx
    //= pop rdx
    //= printed:
    //}
    ret

// Returns the length of the text at RDI in RAX.
length:
    xor eax, eax
more:
    cmp byte ptr [rdi + rax], 0
    je counted
    inc rax
    jmp more
counted:
    ret

greeting: .asciz "Hello, "
// This guest has no titles.
title: .asciz ""
mark: .asciz "!\n"

.balign 8
texts: .quad greeting, title, 0x8000, mark
texts_end:
