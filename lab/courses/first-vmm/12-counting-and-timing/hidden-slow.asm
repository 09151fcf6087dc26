; Makes two exits. Between them it waits for 2^30 ticks of the time-stamp counter, which is more than 0.2 s.
bits 64
org 0x1000
    out 0x80, al
    rdtsc
    shl rdx, 32
    lea rbx, [rdx + rax + (1 << 30)]
.wait:
    pause
    rdtsc
    shl rdx, 32
    add rax, rdx
    cmp rax, rbx
    jb .wait
.end:
    hlt
    jmp .end
text:
