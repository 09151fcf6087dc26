; Each vCPU adds 1000 to one counter, with lock, writes its number to port 0x42, and halts. The first vCPU waits for the
; others and writes the total to the port. rdi holds the vCPU's number, rsi the number of vCPUs.
%include "kev.inc"
    begin64
    mov ecx, 1000
.again:
    lock inc dword [total]
    dec ecx
    jnz .again
    mov eax, edi
    out 0x42, al
    lock inc dword [ready]
    test edi, edi
    jz .first
.park:
    hlt
    jmp .park
.first:
    cmp [ready], esi
    je .look
    pause
    jmp .first
.look:
    imul eax, esi, 1000
    cmp [total], eax
    must_be_equal
    out 0x42, eax
    finish
.wrong:
    hlt
align 4
total: dd 0
ready: dd 0
