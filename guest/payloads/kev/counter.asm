; Each vCPU adds 1000 to one counter, with lock, and halts; the first waits for the others and looks at the total. rdi is
; the vCPU's number, rsi how many there are.
%include "kev.inc"
    begin64
    mov ecx, 1000
.again:
    lock inc dword [total]
    dec ecx
    jnz .again
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
    finish
.wrong:
    hlt
align 4
total: dd 0
ready: dd 0
