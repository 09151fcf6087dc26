; Reads CPUID 256 times. Checks that the vendor does not change, that leaf 1 has the vCPU's number (also in rdi), and
; that the hypervisor bit is set. Writes the vendor, the number and the hypervisor's name to port 0x42.
%include "kev.inc"
    begin64
    mov r12, rdi                ; this vCPU's number
    xor eax, eax
    cpuid
    mov [seen], ebx
    mov [seen + 4], edx
    mov [seen + 8], ecx
    mov r13d, 255
.again:
    xor eax, eax
    cpuid
    cmp ebx, [seen]
    must_be_equal
    mov eax, 1
    cpuid
    bt ecx, 31                  ; the hypervisor bit
    jnc .wrong
    shr ebx, 24
    cmp rbx, r12
    must_be_equal
    dec r13d
    jnz .again
    mov [seen + 12], bl
    mov eax, 0x40000000
    cpuid
    mov [seen + 13], ebx
    mov [seen + 17], ecx
    mov [seen + 21], edx
    mov esi, seen
    mov ecx, 25
.say:
    lodsb
    out 0x42, al
    dec ecx
    jnz .say
    finish
.wrong:
    hlt
seen: times 25 db 0
