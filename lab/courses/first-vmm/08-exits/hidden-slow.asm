; Waits for 2^28 ticks of the time-stamp counter (more than 50 ms), in which signals come, and prints the text that is
; appended to it.
bits 64
org 0x1000
    rdtsc
    shl rdx, 32
    lea rbx, [rdx + rax + (1 << 28)]
.wait:
    pause
    rdtsc
    shl rdx, 32
    add rax, rdx
    cmp rax, rbx
    jb .wait
    mov esi, text
.next:
    lodsb
    test al, al
    jz .end
    out 0xE9, al
    jmp .next
.end:
    hlt
    jmp .end
text:
